// CUDA on a CPU, as far as kernels.cu needs it: put in front of it by `g++ -include`.
//
// The blocks of a launch are shared out among threads of the system, so that they truly run at once. The threads of
// a block are fibres that take turns: at __syncthreads() all wait for all, and an atomic operation may hand over to
// any other before it happens, so that threads meet in the middle of their work as they would on a GPU.
#pragma once

#include <ucontext.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static thread_local

struct Index {
    unsigned int x, y;
};

inline thread_local Index blockIdx, threadIdx, blockDim, gridDim;

class Block {
   public:
    Block(unsigned int threads, std::function<void()> kernel) : kernel_(std::move(kernel)), fibres_(threads) {
        for (auto& fibre : fibres_) fibre.stack = std::make_unique<char[]>(kStack);
    }

    void run() {
        current = this;
        for (unsigned int t = 0; t < fibres_.size(); ++t) {
            Fibre& fibre = fibres_[t];
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.get();
            fibre.context.uc_stack.ss_size = kStack;
            fibre.context.uc_link = &back_;
            fibre.state = kReady;
            makecontext(&fibre.context, &Block::enter, 0);
        }
        for (bool alive = true; alive;) {
            alive = false;
            bool ran = false;
            for (unsigned int t = 0; t < fibres_.size(); ++t) {
                alive |= fibres_[t].state != kDone;
                if (fibres_[t].state != kReady) continue;
                ran = true;
                threadIdx = {t, 0};
                running_ = t;
                swapcontext(&back_, &fibres_[t].context);
            }
            if (!ran) {
                for (auto& fibre : fibres_) {
                    if (fibre.state == kWaiting) fibre.state = kReady;
                }
            }
        }
    }

    void wait() { pause(kWaiting); }
    void yield() { pause(kReady); }

    static thread_local Block* current;

   private:
    enum State { kReady, kWaiting, kDone };
    struct Fibre {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        State state = kReady;
    };
    static constexpr std::size_t kStack = 1 << 16;

    static void enter() {
        current->kernel_();
        current->fibres_[current->running_].state = kDone;
    }

    void pause(State state) {
        Fibre& fibre = fibres_[running_];
        fibre.state = state;
        swapcontext(&fibre.context, &back_);
    }

    std::function<void()> kernel_;
    std::vector<Fibre> fibres_;
    ucontext_t back_;
    unsigned int running_ = 0;
};

inline thread_local Block* Block::current = nullptr;

inline void launch(unsigned int blocks_x, unsigned int blocks_y, unsigned int threads, std::function<void()> kernel) {
    std::atomic<unsigned int> next{0};
    auto work = [&] {
        Block block(threads, kernel);
        blockDim = {threads, 1};
        gridDim = {blocks_x, blocks_y};
        for (unsigned int b; (b = next++) < blocks_x * blocks_y;) {
            blockIdx = {b % blocks_x, b / blocks_x};
            block.run();
        }
    };
    std::vector<std::thread> helpers;
    for (int t = 0; t < 3; ++t) helpers.emplace_back(work);
    work();
    for (auto& helper : helpers) helper.join();
}

inline void __syncthreads() { Block::current->wait(); }

inline int atomicCAS(int* address, int expected, int desired) {
    Block::current->yield();
    __atomic_compare_exchange_n(address, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

inline unsigned int atomicAdd(unsigned int* address, unsigned int value) {
    return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}

inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline long long __double_as_longlong(double value) {
    long long bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

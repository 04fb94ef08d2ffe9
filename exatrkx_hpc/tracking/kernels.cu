// The neighbour search and the connected components on a GPU; kernels.py launches them.
//
// Plain CUDA C++ without a header, so that CuPy compiles it at run time. The same text is compiled as C++ for the
// tests (tests/support/twin). DIMENSIONS is the width of the embedding.

#ifndef DIMENSIONS
#define DIMENSIONS 8
#endif

// Hits of one tile, and threads of one block of the search: every thread has one hit and looks at a tile at a time.
#define TILE 128
#define BINS 256

typedef unsigned long long Bits;

// What float32 makes of a squared distance: cheap, and only ever used to pass by what is surely too far away.
__device__ static float rough(const float* a, const float* b) {
    float sum = 0.0f;
    for (int k = 0; k < DIMENSIONS; ++k) {
        const float step = a[k] - b[k];
        sum += step * step;
    }
    return sum;
}

// The squared distance, rounded after each step as NumPy does, so that CPU and GPU decide alike, to the last bit.
__device__ static double exact(const float* a, const float* b) {
    double sum = 0.0;
    for (int k = 0; k < DIMENSIONS; ++k) {
        const double step = static_cast<double>(a[k]) - static_cast<double>(b[k]);
        sum = __dadd_rn(sum, __dmul_rn(step, step));
    }
    return sum;
}

// Calls visit(j) for each hit j != i of this block's share of the tiles that is near enough to the block's hit i.
// `limit` and `last` of i say how near: a smaller squared distance, or the same one and no larger number.
// blockIdx.x is the tile of the hits i, blockIdx.y one of `gridDim.y` shares of the tiles of the hits j.
template <typename Visit>
__device__ static void each_near(const float* points, int n, float reach, const double* limit, const int* last,
                                 Visit visit) {
    __shared__ float tile[TILE * DIMENSIONS];
    const int i = blockIdx.x * TILE + threadIdx.x;
    const int tiles = (n + TILE - 1) / TILE;
    const int begin = static_cast<int>(static_cast<long long>(tiles) * blockIdx.y / gridDim.y);
    const int end = static_cast<int>(static_cast<long long>(tiles) * (blockIdx.y + 1) / gridDim.y);
    float mine[DIMENSIONS];
    for (int k = 0; k < DIMENSIONS; ++k) mine[k] = i < n ? points[static_cast<long long>(i) * DIMENSIONS + k] : 0.0f;
    const double farthest = i < n ? limit[i] : -1.0;
    const int final_tie = i < n ? last[i] : -1;
    for (int t = begin; t < end; ++t) {
        const long long start = static_cast<long long>(t) * TILE * DIMENSIONS;
        const long long size = static_cast<long long>(n) * DIMENSIONS;
        __syncthreads();  // nobody looks at the tile before any more
        for (int k = threadIdx.x; k < TILE * DIMENSIONS; k += TILE) tile[k] = start + k < size ? points[start + k] : 0.0f;
        __syncthreads();
        const int count = n - t * TILE < TILE ? n - t * TILE : TILE;
        for (int k = 0; k < count; ++k) {
            const int j = t * TILE + k;
            // Whatever is not a number is kept out by the comparison below.
            if (i >= n || j == i || rough(mine, tile + k * DIMENSIONS) > reach) continue;
            const double d = exact(mine, tile + k * DIMENSIONS);
            if (d < farthest || (d == farthest && j <= final_tie)) visit(j);
        }
    }
}

// Counts the hits near each hit: `near_by` all of them, `lower` those of a smaller number, which will be its edges.
// Both are [n, gridDim.y].
extern "C" __global__ void frnn_count(const float* points, int n, float reach, const double* limit, const int* last,
                                      int* lower, int* near_by) {
    const int i = blockIdx.x * TILE + threadIdx.x;
    int n_lower = 0, n_near = 0;
    each_near(points, n, reach, limit, last, [&](int j) {
        n_lower += j < i;
        ++n_near;
    });
    if (i < n) {
        lower[static_cast<long long>(i) * gridDim.y + blockIdx.y] = n_lower;
        near_by[static_cast<long long>(i) * gridDim.y + blockIdx.y] = n_near;
    }
}

// Writes the edges (i, j < i) to `edges` [2, n_edges]; `ends` [n, gridDim.y] is the running sum of `lower`.
extern "C" __global__ void frnn_write(const float* points, int n, float reach, const double* limit, const int* last,
                                      const int* lower, const long long* ends, long long n_edges, long long* edges) {
    const int i = blockIdx.x * TILE + threadIdx.x;
    const long long share = static_cast<long long>(i) * gridDim.y + blockIdx.y;
    long long at = i < n ? ends[share] - lower[share] : 0;
    each_near(points, n, reach, limit, last, [&](int j) {
        if (j < i) {
            edges[at] = i;
            edges[n_edges + at] = j;
            ++at;
        }
    });
}

// Finds, for each crowded hit, one a block, the squared distance and the number of its k-th nearest hit, k > 0, and
// writes them to its `limit` and `last`. A radix selection: the distances are looked at byte by byte, and no list of
// neighbours is kept. The bits of a double that is not negative are in the order of its values.
extern "C" __global__ void frnn_limit(const float* points, int n, double square, float reach, int k,
                                      const int* crowded, double* limit, int* last) {
    __shared__ unsigned int bins[BINS];
    __shared__ Bits distance;  // what is known of the k-th squared distance, from the highest byte on
    __shared__ Bits number;    // and, after its last byte, of the number of the hit
    __shared__ unsigned int rank;
    const int i = crowded[blockIdx.x];
    if (threadIdx.x == 0) {
        distance = 0;
        number = 0;
        rank = k;
    }
    for (int pass = 0; pass < 12; ++pass) {
        const bool by_number = pass >= 8;
        const int shift = by_number ? 8 * (11 - pass) : 8 * (7 - pass);
        for (int b = threadIdx.x; b < BINS; b += blockDim.x) bins[b] = 0;
        __syncthreads();
        // The bytes above `shift` are settled. In two steps: a shift by all 64 bits would not be defined.
        const Bits known_distance = by_number ? distance : distance >> shift >> 8;
        const Bits known_number = number >> shift >> 8;
        for (int j = threadIdx.x; j < n; j += blockDim.x) {
            const float* mine = points + static_cast<long long>(i) * DIMENSIONS;
            const float* other = points + static_cast<long long>(j) * DIMENSIONS;
            if (j == i || rough(mine, other) > reach) continue;
            const double d = exact(mine, other);
            if (!(d <= square)) continue;
            const Bits bits = static_cast<Bits>(__double_as_longlong(d));
            const Bits value = by_number ? static_cast<Bits>(j) : bits;
            const bool fits = by_number ? bits == known_distance && (value >> shift >> 8) == known_number
                                        : (bits >> shift >> 8) == known_distance;
            if (fits) atomicAdd(&bins[(value >> shift) & (BINS - 1)], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = 0;
            while (b < BINS - 1 && bins[b] < rank) rank -= bins[b++];
            if (by_number) {
                number |= static_cast<Bits>(b) << shift;
            } else {
                distance |= static_cast<Bits>(b) << shift;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        limit[i] = __longlong_as_double(static_cast<long long>(distance));
        last[i] = static_cast<int>(number);
    }
}

// A forest in `parent`: a root is its own parent, any other hit's parent has a smaller number. So the root of a tree
// is its smallest hit, whatever the order in which threads join them.

// Returns the root of a hit and shortens the way to it. Other threads may do the same: a parent is only ever
// replaced by one of its own ancestors.
__device__ static int find_root(volatile int* parent, int hit) {
    int previous = hit, current = parent[hit], next;
    while ((next = parent[current]) != current) {
        parent[previous] = next;
        previous = current;
        current = next;
    }
    return current;
}

extern "C" __global__ void component_start(int* parent, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) parent[i] = i;
}

// Joins the ends of each edge of `edges` [2, n_edges] whose score is above `cut`.
extern "C" __global__ void component_join(const long long* edges, const float* scores, float cut, long long n_edges,
                                          int* parent) {
    const long long e = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= n_edges || !(scores[e] > cut)) return;
    int a = find_root(parent, static_cast<int>(edges[e]));
    int b = find_root(parent, static_cast<int>(edges[n_edges + e]));
    while (a != b) {
        const int larger = a > b ? a : b, smaller = a > b ? b : a;
        // Fails when another thread has hung up `larger` meanwhile; then both have other roots now.
        if (atomicCAS(&parent[larger], larger, smaller) == larger) return;
        a = find_root(parent, larger);
        b = find_root(parent, smaller);
    }
}

// Makes each hit's root its parent. Every thread writes to its own hit alone: a shortened way, written late, could
// undo what another has finished.
extern "C" __global__ void component_finish(volatile int* parent, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int root = i, next;
    while ((next = parent[root]) != root) root = next;
    parent[i] = root;
}

// The kernels of kernels.cu as functions that Python can call; compiled with `-include cuda.h -include kernels.cu`.

using Size = unsigned int;

extern "C" {

void launch_frnn_count(Size x, Size y, Size threads, const float* points, int n, float reach, const double* limit,
                       const int* last, int* lower, int* near_by) {
    launch(x, y, threads, [=] { frnn_count(points, n, reach, limit, last, lower, near_by); });
}

void launch_frnn_write(Size x, Size y, Size threads, const float* points, int n, float reach, const double* limit,
                       const int* last, const int* lower, const long long* ends, long long n_edges,
                       long long* edges) {
    launch(x, y, threads, [=] { frnn_write(points, n, reach, limit, last, lower, ends, n_edges, edges); });
}

void launch_frnn_limit(Size x, Size y, Size threads, const float* points, int n, double square, float reach, int k,
                       const int* crowded, double* limit, int* last) {
    launch(x, y, threads, [=] { frnn_limit(points, n, square, reach, k, crowded, limit, last); });
}

void launch_component_start(Size x, Size y, Size threads, int* parent, int n) {
    launch(x, y, threads, [=] { component_start(parent, n); });
}

void launch_component_join(Size x, Size y, Size threads, const long long* edges, const float* logits, float cut,
                           long long n_edges, int* parent) {
    launch(x, y, threads, [=] { component_join(edges, logits, cut, n_edges, parent); });
}

void launch_component_finish(Size x, Size y, Size threads, int* parent, int n) {
    launch(x, y, threads, [=] { component_finish(parent, n); });
}
}

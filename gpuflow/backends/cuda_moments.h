// Count, mean, spread and extrema in one pass, as CUDA kernels; after cuda_scalar.h, of which they use the names. NaN values are skipped.
// VALUE: the type in memory. READ(x): its value. INDEX: an unsigned type that holds the number of elements.

struct Part { i8 count; f8 mean, m2, least, greatest; };

FN Part nothing() { return {0, 0, 0, f8_of(0x7ff0000000000000ULL), f8_of(0xfff0000000000000ULL)}; }

// Both sides together: Chan, Golub and LeVeque, 1979.
FN Part merge(Part x, Part y) {
    if (!x.count || !y.count) return x.count ? x : y;
    const f8 left = x.count, right = y.count, share = right / (left + right), apart = y.mean - x.mean;
    return {x.count + y.count, x.mean + apart * share, x.m2 + y.m2 + apart * apart * (left * share),
        x.least < y.least ? x.least : y.least, x.greatest > y.greatest ? x.greatest : y.greatest};
}

// Of some values, as sums of what they are above `shift`, which lies among them: little is lost when they are far from 0. A NaN: it is the
// first of them.
struct Sums {
    f8 shift, sum, squares, least, greatest;
    int count;

    FN_MEMBER void begin(f8 at) { *this = {at, 0, 0, nothing().least, nothing().greatest, 0}; }
    FN_MEMBER void add(f8 value) {
        if (value != value) return;
        if (shift != shift) shift = value;
        const f8 above = value - shift;
        sum += above;
        squares += above * above;
        least = value < least ? value : least;
        greatest = value > greatest ? value : greatest;
        ++count;
    }
    FN_MEMBER Part part() const {
        if (!count) return nothing();
        const f8 m2 = squares - sum * (sum / count);
        return {count, shift + sum / count, m2 < 0 ? 0 : m2, least, greatest};
    }
};

#define AT_ONCE 64

// A block as (outer, kept, inner) elements. Thread t of `threads` for each index of `kept` writes parts[...]; see `merge_parts`.
// flat: thread t reads elements t, t + threads, ..., which all have the same index of `kept`: threads is a multiple of kept * inner.
// Else blockIdx.y is the index, and the elements of that index are shared out to `threads` threads.
extern "C" __global__ void moments(INDEX outer, INDEX kept, INDEX inner, INDEX threads, int flat, const VALUE* __restrict__ x, Part* parts) {
    const INDEX thread = (INDEX)blockIdx.x * blockDim.x + threadIdx.x, at = blockIdx.y;
    if (thread >= threads) return;
    const INDEX size = flat ? outer * kept * inner : outer * inner;
    Part all = nothing();
    Sums sums;
    for (INDEX i = thread; i < size;) {
        sums.begin(all.count ? all.mean : f8_of(~0ULL));
        #pragma unroll 8
        for (int n = 0; n < AT_ONCE; ++n) {
            if (i < size) sums.add(READ(x[flat ? i : (i / inner * kept + at) * inner + i % inner]));
            i += threads;
        }
        all = merge(all, sums.part());
    }
    parts[flat ? thread : at * threads + thread] = all;
}

// Of `kept` lists of `count` parts each, every one merged to `groups`: out[index * groups + group].
// Part m of list k lies at (m / inner) * kept * inner + k * inner + m % inner.
extern "C" __global__ void merge_parts(INDEX kept, INDEX inner, INDEX count, INDEX groups, const Part* __restrict__ parts, Part* out) {
    const INDEX thread = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= kept * groups) return;
    const INDEX at = thread / groups;
    Part all = nothing();
    for (INDEX m = thread % groups; m < count; m += groups) all = merge(all, parts[m / inner * kept * inner + at * inner + m % inner]);
    out[thread] = all;
}

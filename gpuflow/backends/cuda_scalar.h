// One value at a time, as NumPy has it: the functions that generated CUDA kernels call.
// A half float is held as a float that half can represent, and rounded after each operation. It is C++17 that a host compiler takes too,
// which is how it is tested where there is no device; what the device has instructions for is below, in two versions.

typedef signed char i1;
typedef short i2;
typedef int i4;
typedef long long i8;
typedef unsigned char u1;
typedef unsigned short u2;
typedef unsigned int u4;
typedef unsigned long long u8;
typedef float f4;
typedef double f8;

#ifdef __CUDACC__
#define FN __device__ __forceinline__
#define FN_MEMBER __device__ __forceinline__
FN f4 load_half(u2 bits) { f4 value; asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits)); return value; }
FN u2 store_half(f4 value) { u2 bits; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); return bits; }
FN f4 round_half(f8 value) { u2 bits; asm("cvt.rn.f16.f64 %0, %1;" : "=h"(bits) : "d"(value)); return load_half(bits); }
#else
#include <cmath>
#define FN static inline
#define FN_MEMBER inline
FN f4 load_half(u2 bits) { _Float16 value; __builtin_memcpy(&value, &bits, 2); return value; }
FN u2 store_half(f4 value) { _Float16 half = value; u2 bits; __builtin_memcpy(&bits, &half, 2); return bits; }
FN f4 round_half(f8 value) { return (_Float16)value; }
#endif

FN f4 round_half(f4 value) { return load_half(store_half(value)); }
FN f4 f4_of(u4 bits) { union { u4 bits; f4 value; } one; one.bits = bits; return one.value; }
FN f8 f8_of(u8 bits) { union { u8 bits; f8 value; } one; one.bits = bits; return one.value; }

#define FLOATS(F, T, SUFFIX) \
    FN T fabs_(T x) { return fabs##SUFFIX(x); } \
    FN T floor_(T x) { return floor##SUFFIX(x); } \
    FN T ceil_(T x) { return ceil##SUFFIX(x); } \
    FN T trunc_(T x) { return trunc##SUFFIX(x); } \
    FN T rint_(T x) { return rint##SUFFIX(x); } \
    FN T sqrt_(T x) { return sqrt##SUFFIX(x); } \
    FN T cbrt_(T x) { return cbrt##SUFFIX(x); } \
    FN T exp_(T x) { return exp##SUFFIX(x); } \
    FN T exp2_(T x) { return exp2##SUFFIX(x); } \
    FN T expm1_(T x) { return expm1##SUFFIX(x); } \
    FN T log_(T x) { return log##SUFFIX(x); } \
    FN T log1p_(T x) { return log1p##SUFFIX(x); } \
    FN T log2_(T x) { return log2##SUFFIX(x); } \
    FN T log10_(T x) { return log10##SUFFIX(x); } \
    FN T sin_(T x) { return sin##SUFFIX(x); } \
    FN T cos_(T x) { return cos##SUFFIX(x); } \
    FN T tan_(T x) { return tan##SUFFIX(x); } \
    FN T arcsin_(T x) { return asin##SUFFIX(x); } \
    FN T arccos_(T x) { return acos##SUFFIX(x); } \
    FN T arctan_(T x) { return atan##SUFFIX(x); } \
    FN T sinh_(T x) { return sinh##SUFFIX(x); } \
    FN T cosh_(T x) { return cosh##SUFFIX(x); } \
    FN T tanh_(T x) { return tanh##SUFFIX(x); } \
    FN T arcsinh_(T x) { return asinh##SUFFIX(x); } \
    FN T arccosh_(T x) { return acosh##SUFFIX(x); } \
    FN T arctanh_(T x) { return atanh##SUFFIX(x); } \
    FN T arctan2_(T x, T y) { return atan2##SUFFIX(x, y); } \
    FN T hypot_(T x, T y) { return hypot##SUFFIX(x, y); } \
    FN T power_(T x, T y) { return pow##SUFFIX(x, y); } \
    FN T fmod_(T x, T y) { return fmod##SUFFIX(x, y); } \
    FN T copysign_(T x, T y) { return copysign##SUFFIX(x, y); }
FLOATS(F, f4, f)
FLOATS(F, f8, )
#undef FLOATS

// What x86 makes of a float: the least integer stands for all that does not fit.
template <class T> FN i4 to_int32(T x) { return fabs_(x) < (T)2147483648.0 ? (i4)x : -2147483647 - 1; }
template <class T> FN i8 to_int64(T x) { return fabs_(x) < (T)9223372036854775808.0 ? (i8)x : -9223372036854775807LL - 1; }
template <class T> FN u8 to_uint64(T x) {
    const T top = (T)9223372036854775808.0;
    return x < top || x != x ? (u8)to_int64(x) : (u8)to_int64(x - top) ^ (1ULL << 63);
}

// NaN stays, whether it is the value or a bound; of two zeros the value's stays.
template <class T> FN T clip_(T x, T low, T high) {
    const T value = x >= low || x != x ? x : low;
    return value <= high || value != value ? value : high;
}

// Rounded down; by zero 0.
template <class T> FN T floor_divide_signed(T x, T y) {
    if (y == 0) return 0;
    if (y == -1) return (T)(0 - (u8)x);
    const T whole = x / y;
    return whole * y != x && (x < 0) != (y < 0) ? whole - 1 : whole;
}
template <class T> FN T remainder_signed(T x, T y) {
    if (y == 0 || y == -1) return 0;
    const T rest = x % y;
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}
template <class T> FN T floor_divide_unsigned(T x, T y) { return y == 0 ? (T)0 : (T)(x / y); }
template <class T> FN T remainder_unsigned(T x, T y) { return y == 0 ? (T)0 : (T)(x % y); }

// Wraps, as all integers do.
FN u8 power_whole(u8 x, u8 y) {
    u8 result = 1;
    for (; y; y >>= 1, x *= x)
        if (y & 1) result *= x;
    return result;
}

// NumPy's divmod of floats.
template <class T> FN T remainder_float(T x, T y) {
    const T rest = fmod_(x, y);
    if (y == 0) return rest;
    if (rest == 0) return copysign_((T)0, y);
    return (y < 0) != (rest < 0) ? rest + y : rest;
}
template <class T> FN T floor_divide_float(T x, T y) {
    if (y == 0) return x / y;
    T rest = fmod_(x, y), whole = (x - rest) / y;
    if (rest != 0 && (y < 0) != (rest < 0)) whole -= 1;
    if (whole == 0) return copysign_((T)0, x / y);
    const T below = floor_(whole);
    return whole - below > (T)0.5 ? below + 1 : below;
}

template <class T> FN T logaddexp_(T x, T y) {
    if (x == y) return x + (T)0.693147180559945309417232121458176568;
    const T apart = x - y;
    if (apart > 0) return x + log1p_(exp_(-apart));
    return apart <= 0 ? y + log1p_(exp_(apart)) : apart;
}

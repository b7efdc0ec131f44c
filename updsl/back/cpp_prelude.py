"""What every generated C++ file begins with: number types, and the functions that ops.py names."""

PRELUDE = r"""
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

typedef int64_t i64;
typedef _Float16 half;
struct bfloat { uint16_t bits; };

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

template <class To, class From> inline To bits(From x) { To y; static_assert(sizeof x == sizeof y, ""); std::memcpy(&y, &x, sizeof y); return y; }

// x toward zero, with the last bit set if that is not exact: what is rounded from it to fewer bits is rounded once
inline float to_odd(double x) {
    float y = (float)x;
    if (!((double)y != x) || y != y) return y;
    uint32_t b = bits<uint32_t>(y);
    if (std::abs((double)y) > std::abs(x)) b -= 1;
    return bits<float>(b | 1);
}
inline float to_odd(float x) { return x; }

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline bool load(bool x) { return x; }
inline float load(half x) { return (float)x; }
inline float load(bfloat x) { return bits<float>((uint32_t)x.bits << 16); }

// x rounded to nearest, ties to even
template <class T> struct To { template <class X> static inline T of(X x) { return (T)x; } };
template <> struct To<half> { template <class X> static inline half of(X x) { return (half)to_odd(x); } };
template <> struct To<bfloat> {
    template <class X> static inline bfloat of(X x) {
        uint32_t b = bits<uint32_t>(to_odd(x));
        uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
        return bfloat{(uint16_t)((b & 0x7fffffff) > 0x7f800000 ? (b >> 16) | 0x40 : rounded)};
    }
};
template <class T, class X> inline T store(X x) { return To<T>::of(x); }

template <class R> inline R smaller(R x, R y) { return (x < y) | (x != x) ? x : y; }
template <class R> inline R larger(R x, R y) { return (x > y) | (x != x) ? x : y; }
template <class R> inline R sign(R x) { return x != x ? x : R(x > 0) - R(x < 0); }
template <class R> inline bool is_finite(R x) { return std::abs(x) <= std::numeric_limits<R>::max(); }
inline double average(double b, double m, double c, double x) { return b * m + c * x; }
// b + c = 1, but for rounding: from the nearer end, if that is finite and not 0 (whose sign would be lost)
inline float average(float b, float m, float c, float x) {
    const bool small = c < 0.5f;
    const float near = (small ? m : x) + (small ? c : c - 1) * (x - m);
    return is_finite(near) & (near != 0) ? near : b * m + c * x;
}
template <class R> inline R square(R x) { return x * x; }
template <class R> inline R power(R x, R y) { return (x != x) | (y != y) ? x + y : std::pow(x, y); }
template <class R> inline R modulo(R a, R b) {
    R r = std::fmod(a, b);
    return r != 0 ? ((r < 0) != (b < 0) ? r + b : r) : std::copysign(r, b);
}

"""

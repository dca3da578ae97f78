"""CUDA C that every kernel begins with: types, conversions, and the argument structures. No header is included."""

PRELUDE = r"""
#pragma nv_diag_suppress 177
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
typedef unsigned long long u64; typedef long long i64;
#define PK_UNROLL _Pragma("unroll")
struct pk_global { void* data; int shape[4]; i64 stride[4]; };
__device__ __forceinline__ u32 pk_shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 pk_pack_bf16(float lo, float hi) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ u32 pk_pack_f16(float lo, float hi) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ float pk_bf16_float(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ float pk_f16_float(u16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
__device__ __forceinline__ u16 pk_float_bf16(float x) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ u16 pk_float_f16(float x) {
  u16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ u32 pk_pack_bf16(u16 lo, u16 hi) { return (u32)lo | (u32)hi << 16; }
__device__ __forceinline__ u32 pk_pack_f16(u16 lo, u16 hi) { return (u32)lo | (u32)hi << 16; }
__device__ __forceinline__ u16 pk_half(const u32* v, int i) { return (u16)(i & 1 ? v[i >> 1] >> 16 : v[i >> 1]); }
__device__ __forceinline__ float pk_get_bf16(const u32* v, int i) {
  return __uint_as_float(i & 1 ? v[i >> 1] & 0xffff0000u : v[i >> 1] << 16);
}
__device__ __forceinline__ float pk_get_f16(const u32* v, int i) { return pk_f16_float(pk_half(v, i)); }
"""

# 8-bit floats (PTX "cvt", sm_89 and newer): through f16, which holds both exactly.
FP8 = r"""
__device__ __forceinline__ float pk_e4m3_float(u8 x) {
  u32 r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((u16)x));
  return pk_f16_float((u16)r);
}
__device__ __forceinline__ u32 pk_f16_of_e4m3x2(u16 x) {
  u32 r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(x));
  return r;
}
__device__ __forceinline__ void pk_f16_of_e4m3x4(u32 x, u32& low, u32& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high) : "r"(x));
}
__device__ __forceinline__ u32 pk_f16_of_e5m2x2(u16 x) {
  u32 r;
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(r) : "h"(x));
  return r;
}
__device__ __forceinline__ void pk_f16_of_e5m2x4(u32 x, u32& low, u32& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e5m2x2 %0, l; cvt.rn.f16x2.e5m2x2 %1, h; }"
      : "=r"(low), "=r"(high) : "r"(x));
}
__device__ __forceinline__ u32 pk_bf16_of_f16(u32 x) {
  return pk_pack_bf16(pk_f16_float((u16)x), pk_f16_float((u16)(x >> 16)));
}
__device__ __forceinline__ float pk_e5m2_float(u8 x) {
  u32 r;
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(r) : "h"((u16)x));
  return pk_f16_float((u16)r);
}
__device__ __forceinline__ u8 pk_float_e4m3(float x) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.0f), "f"(x));
  return (u8)r;
}
__device__ __forceinline__ u8 pk_float_e5m2(float x) {
  u16 r;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(0.0f), "f"(x));
  return (u8)r;
}
"""

# One lane of a converged warp, always the same (PTX "elect.sync"): cheaper than comparing thread numbers.
ELECT = r"""
__device__ __forceinline__ bool pk_elect_one() {
  u32 p;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(p));
  return p;
}
"""

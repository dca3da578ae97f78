"""CUDA C that the tests of this folder compile."""

MMA = r"""
extern "C" __global__ void __launch_bounds__(32) multiply(const unsigned* a, const unsigned* b, float* c, int steps) {
  unsigned lane = threadIdx.x;
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  #pragma unroll 1
  for (int i = 0; i < steps; i++) {
    const unsigned* x = a + i * 128 + lane * 4;
    const unsigned* y = b + i * 64 + lane * 2;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  }
  c[lane * 4] = d0; c[lane * 4 + 1] = d1; c[lane * 4 + 2] = d2; c[lane * 4 + 3] = d3;
}
"""

WGMMA = r"""
__device__ inline void product(float (&d)[4], unsigned long long a, unsigned long long b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b));
}
extern "C" __global__ void __launch_bounds__(128) multiply(float* c, long long a, long long b) {
  float d[4] = {0, 0, 0, 0};
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  product(d, a, b);
  TOUCH
  product(d, a + 2, b + 2);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; i++) c[threadIdx.x * 4 + i] = d[i];
}
"""

# Two hundred live floats cannot fit in 64 registers (asked for with --maxrregcount).
SPILLING = r"""
extern "C" __global__ void __launch_bounds__(128) crowd(float* p, int n) {
  __shared__ float shared[256];
  float a[200];
  shared[threadIdx.x] = p[threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 200; i++) a[i] = p[i * n + threadIdx.x];
  for (int k = 0; k < n; k++) {
    #pragma unroll
    for (int i = 0; i < 200; i++) a[i] = a[i] * a[(i + 7) % 200] + shared[i];
  }
  #pragma unroll
  for (int i = 0; i < 200; i++) p[i * n + threadIdx.x] = a[i];
}
"""

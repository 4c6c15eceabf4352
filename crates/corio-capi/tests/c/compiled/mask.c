#include <immintrin.h>
#include "corio.h"

/* A mask of AVX-512 is there when it yields, and used afterwards. */
__mmask16 masks(const float *a, const float *b, float *out)
{
    __m512 c = _mm512_loadu_ps(a);
    __mmask16 less = _mm512_cmp_ps_mask(c, _mm512_loadu_ps(b), 1);
    __mmask16 more = _mm512_cmp_ps_mask(c, _mm512_loadu_ps(b + 16), 1);

    __asm__ __volatile__("" : "+k"(less), "+k"(more)); /* They are made here. */
    qemu_coroutine_yield();
    _mm512_mask_storeu_ps(out, _kor_mask16(less, more), _mm512_setzero_ps());
    return _kand_mask16(less, more);
}

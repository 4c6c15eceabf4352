#include "corio.h"

void enters(Coroutine *co)
{
    qemu_coroutine_enter(co);
}

void coroutine_fn yields(void)
{
    qemu_coroutine_yield();
}

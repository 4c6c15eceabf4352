/* Each function that can be misused, misused: it says its name and what is wrong, and aborts. What
 * takes more than a call is in the programs of what it belongs to. */
#include "test.h"

static void nothing(void *opaque)
{
    (void)opaque;
}

/* A main loop is there, so that it is nothing else that is wrong. */
#define MISUSED(name, arguments)                                                                   \
    static void name##_misused(void)                                                               \
    {                                                                                              \
        CHECK(qemu_init_main_loop(NULL) == 0);                                                     \
        (void)(name arguments);                                                                    \
    }

MISUSED(aio_bh_call, (NULL))
MISUSED(aio_bh_new_full, (NULL, nothing, NULL, "bh", NULL))
MISUSED(aio_bh_poll, (NULL))
MISUSED(aio_bh_schedule_oneshot_full, (NULL, nothing, NULL, "bh"))
MISUSED(aio_co_enter, (NULL, NULL))
MISUSED(aio_co_reschedule_self, (NULL))
MISUSED(aio_co_schedule, (NULL, NULL))
MISUSED(aio_co_wake, (NULL))
MISUSED(aio_compute_timeout, (NULL))
MISUSED(aio_context_ref, (NULL))
MISUSED(aio_context_set_aio_params, (NULL, 0))
MISUSED(aio_context_set_poll_params, (NULL, 0, 0, 0, NULL))
MISUSED(aio_context_set_thread_pool_params, (NULL, 0, 1, NULL))
MISUSED(aio_context_unref, (NULL))
MISUSED(aio_dispatch, (NULL))
MISUSED(aio_notify, (NULL))
MISUSED(aio_notify_accept, (NULL))
MISUSED(aio_pending, (NULL))
MISUSED(aio_poll, (NULL, false))
MISUSED(aio_prepare, (NULL))
MISUSED(aio_set_event_notifier, (NULL, NULL, NULL, NULL, NULL))
MISUSED(aio_set_event_notifier_poll, (NULL, NULL, NULL, NULL))
MISUSED(aio_set_fd_handler, (NULL, 0, NULL, NULL, NULL, NULL, NULL))
MISUSED(aio_timer_init, (NULL, NULL, QEMU_CLOCK_REALTIME, SCALE_MS, nothing, NULL))
MISUSED(aio_timer_new, (NULL, QEMU_CLOCK_REALTIME, SCALE_MS, nothing, NULL))
MISUSED(aio_wait_bh_oneshot, (NULL, nothing, NULL))
MISUSED(co_get_from_shres, (NULL, 1))
MISUSED(co_put_to_shres, (NULL, 1))
MISUSED(co_try_get_from_shres, (NULL, 1))
MISUSED(corio_aio_cancel, (NULL))
MISUSED(corio_aio_cancel_async, (NULL))
MISUSED(corio_co_recv, (0, NULL, 0))
MISUSED(corio_co_recvv, (0, NULL, 0, 0, 0))
MISUSED(corio_co_send, (0, NULL, 0))
MISUSED(corio_co_sendv, (0, NULL, 0, 0, 0))
MISUSED(corio_iothread_get_aio_context, (NULL))
MISUSED(corio_iothread_join, (NULL))
MISUSED(corio_iothread_stop, (NULL))
MISUSED(defer_call, (NULL, NULL))
MISUSED(event_notifier_cleanup, (NULL))
MISUSED(event_notifier_get_fd, (NULL))
MISUSED(event_notifier_init, (NULL, 0))
MISUSED(event_notifier_init_fd, (NULL, 0))
MISUSED(event_notifier_set, (NULL))
MISUSED(event_notifier_test_and_clear, (NULL))
MISUSED(qemu_aio_coroutine_enter, (NULL, NULL))
MISUSED(qemu_bh_cancel, (NULL))
MISUSED(qemu_bh_delete, (NULL))
MISUSED(qemu_bh_schedule, (NULL))
MISUSED(qemu_bh_schedule_idle, (NULL))
MISUSED(qemu_clock_enable, ((QEMUClockType)99, true))
MISUSED(qemu_clock_get_ns, ((QEMUClockType)99))
MISUSED(qemu_co_enter_all, (NULL, NULL))
MISUSED(qemu_co_enter_next, (NULL, NULL))
MISUSED(qemu_co_mutex_assert_locked, (NULL))
MISUSED(qemu_co_mutex_init, (NULL))
MISUSED(qemu_co_mutex_lock, (NULL))
MISUSED(qemu_co_mutex_unlock, (NULL))
MISUSED(qemu_co_queue_empty, (NULL))
MISUSED(qemu_co_queue_init, (NULL))
MISUSED(qemu_co_queue_next, (NULL))
MISUSED(qemu_co_queue_restart_all, (NULL))
MISUSED(qemu_co_queue_wait, (NULL, NULL))
MISUSED(qemu_co_queue_wait_flags, (NULL, NULL, 0))
MISUSED(qemu_co_rwlock_downgrade, (NULL))
MISUSED(qemu_co_rwlock_init, (NULL))
MISUSED(qemu_co_rwlock_rdlock, (NULL))
MISUSED(qemu_co_rwlock_unlock, (NULL))
MISUSED(qemu_co_rwlock_upgrade, (NULL))
MISUSED(qemu_co_rwlock_wrlock, (NULL))
MISUSED(qemu_co_sleep, (NULL))
MISUSED(qemu_co_sleep_ns, (QEMU_CLOCK_REALTIME, 1))
MISUSED(qemu_co_sleep_ns_wakeable, (NULL, QEMU_CLOCK_REALTIME, 1))
MISUSED(qemu_co_sleep_wake, (NULL))
MISUSED(qemu_co_timeout, (nothing, NULL, 1, NULL))
MISUSED(qemu_coroutine_create, (NULL, NULL))
MISUSED(qemu_coroutine_enter, (NULL))
MISUSED(qemu_coroutine_enter_if_inactive, (NULL))
MISUSED(qemu_coroutine_entered, (NULL))
MISUSED(qemu_coroutine_get_aio_context, (NULL))
MISUSED(qemu_event_destroy, (NULL))
MISUSED(qemu_event_init, (NULL, false))
MISUSED(qemu_event_reset, (NULL))
MISUSED(qemu_event_set, (NULL))
MISUSED(qemu_event_wait, (NULL))
MISUSED(qemu_lockcnt_count, (NULL))
MISUSED(qemu_lockcnt_dec, (NULL))
MISUSED(qemu_lockcnt_dec_and_lock, (NULL))
MISUSED(qemu_lockcnt_dec_if_lock, (NULL))
MISUSED(qemu_lockcnt_destroy, (NULL))
MISUSED(qemu_lockcnt_inc, (NULL))
MISUSED(qemu_lockcnt_inc_and_unlock, (NULL))
MISUSED(qemu_lockcnt_init, (NULL))
MISUSED(qemu_lockcnt_lock, (NULL))
MISUSED(qemu_lockcnt_unlock, (NULL))
MISUSED(thread_pool_submit_aio, (NULL, NULL, NULL, NULL))
MISUSED(thread_pool_submit_co, (NULL, NULL))
MISUSED(timer_deinit, (NULL))
MISUSED(timer_del, (NULL))
MISUSED(timer_expire_time_ns, (NULL))
MISUSED(timer_expired, (NULL, 0))
MISUSED(timer_init_full, (NULL, NULL, QEMU_CLOCK_REALTIME, SCALE_MS, 0, nothing, NULL))
MISUSED(timer_mod, (NULL, 1))
MISUSED(timer_mod_anticipate, (NULL, 1))
MISUSED(timer_mod_anticipate_ns, (NULL, 1))
MISUSED(timer_mod_ns, (NULL, 1))
MISUSED(timer_pending, (NULL))
MISUSED(yield_until_fd_readable, (-1))

#define SAYS(name, what) CHECK_DIES(name##_misused, #name ": " what)

static void each_says_what_is_wrong(void)
{
    SAYS(aio_bh_call, "the bottom half is NULL");
    SAYS(aio_bh_new_full, "the context is NULL");
    SAYS(aio_bh_poll, "the context is NULL");
    SAYS(aio_bh_schedule_oneshot_full, "the context is NULL");
    SAYS(aio_co_enter, "the coroutine is NULL");
    SAYS(aio_co_reschedule_self, "called outside a coroutine");
    SAYS(aio_co_schedule, "the context is NULL");
    SAYS(aio_co_wake, "the coroutine is NULL");
    SAYS(aio_compute_timeout, "the context is NULL");
    SAYS(aio_context_ref, "the context is NULL");
    SAYS(aio_context_set_aio_params, "the context is NULL");
    SAYS(aio_context_set_poll_params, "the context is NULL");
    SAYS(aio_context_set_thread_pool_params, "the context is NULL");
    SAYS(aio_context_unref, "the context is NULL");
    SAYS(aio_dispatch, "the context is NULL");
    SAYS(aio_notify, "the context is NULL");
    SAYS(aio_notify_accept, "the context is NULL");
    SAYS(aio_pending, "the context is NULL");
    SAYS(aio_poll, "the context is NULL");
    SAYS(aio_prepare, "the context is NULL");
    SAYS(aio_set_event_notifier, "the context is NULL");
    SAYS(aio_set_event_notifier_poll, "the context is NULL");
    SAYS(aio_set_fd_handler, "the context is NULL");
    SAYS(aio_timer_init, "the context is NULL");
    SAYS(aio_timer_new, "the context is NULL");
    SAYS(aio_wait_bh_oneshot, "the context is NULL");
    SAYS(co_get_from_shres, "the resource is NULL");
    SAYS(co_put_to_shres, "the resource is NULL");
    SAYS(co_try_get_from_shres, "the resource is NULL");
    SAYS(corio_aio_cancel, "the job is NULL");
    SAYS(corio_aio_cancel_async, "the job is NULL");
    SAYS(corio_co_recv, "called outside a coroutine");
    SAYS(corio_co_recvv, "called outside a coroutine");
    SAYS(corio_co_send, "called outside a coroutine");
    SAYS(corio_co_sendv, "called outside a coroutine");
    SAYS(corio_iothread_get_aio_context, "the thread is NULL");
    SAYS(corio_iothread_join, "the thread is NULL");
    SAYS(corio_iothread_stop, "the thread is NULL");
    SAYS(defer_call, "the function is NULL");
    SAYS(event_notifier_cleanup, "the event notifier is NULL");
    SAYS(event_notifier_get_fd, "the event notifier is NULL");
    SAYS(event_notifier_init, "the event notifier is NULL");
    SAYS(event_notifier_init_fd, "the event notifier is NULL");
    SAYS(event_notifier_set, "the event notifier is NULL");
    SAYS(event_notifier_test_and_clear, "the event notifier is NULL");
    SAYS(qemu_aio_coroutine_enter, "the coroutine is NULL");
    SAYS(qemu_bh_cancel, "the bottom half is NULL");
    SAYS(qemu_bh_delete, "the bottom half is NULL");
    SAYS(qemu_bh_schedule, "the bottom half is NULL");
    SAYS(qemu_bh_schedule_idle, "the bottom half is NULL");
    SAYS(qemu_clock_enable, "there is no clock 99");
    SAYS(qemu_clock_get_ns, "there is no clock 99");
    SAYS(qemu_co_enter_all, "the queue is NULL");
    SAYS(qemu_co_enter_next, "the queue is NULL");
    SAYS(qemu_co_mutex_assert_locked, "the lock is NULL");
    SAYS(qemu_co_mutex_init, "the lock is NULL");
    SAYS(qemu_co_mutex_lock, "the lock is NULL");
    SAYS(qemu_co_mutex_unlock, "the lock is NULL");
    SAYS(qemu_co_queue_empty, "the queue is NULL");
    SAYS(qemu_co_queue_init, "the queue is NULL");
    SAYS(qemu_co_queue_next, "the queue is NULL");
    SAYS(qemu_co_queue_restart_all, "the queue is NULL");
    SAYS(qemu_co_queue_wait, "called outside a coroutine");
    CHECK_DIES(qemu_co_queue_wait_flags_misused,
               "qemu_co_queue_wait: called outside a coroutine"); /* It is the other's way. */
    SAYS(qemu_co_rwlock_downgrade, "the lock is NULL");
    SAYS(qemu_co_rwlock_init, "the lock is NULL");
    SAYS(qemu_co_rwlock_rdlock, "the lock is NULL");
    SAYS(qemu_co_rwlock_unlock, "the lock is NULL");
    SAYS(qemu_co_rwlock_upgrade, "the lock is NULL");
    SAYS(qemu_co_rwlock_wrlock, "the lock is NULL");
    SAYS(qemu_co_sleep, "the place to sleep in is NULL");
    SAYS(qemu_co_sleep_ns, "called outside a coroutine");
    SAYS(qemu_co_sleep_ns_wakeable, "the place to sleep in is NULL");
    SAYS(qemu_co_sleep_wake, "the place to sleep in is NULL");
    SAYS(qemu_co_timeout, "called outside a coroutine");
    SAYS(qemu_coroutine_create, "the function is NULL");
    SAYS(qemu_coroutine_enter, "the coroutine is NULL");
    SAYS(qemu_coroutine_enter_if_inactive, "the coroutine is NULL");
    SAYS(qemu_coroutine_entered, "the coroutine is NULL");
    SAYS(qemu_coroutine_get_aio_context, "the coroutine is NULL");
    SAYS(qemu_event_destroy, "the event is NULL");
    SAYS(qemu_event_init, "the event is NULL");
    SAYS(qemu_event_reset, "the event is NULL");
    SAYS(qemu_event_set, "the event is NULL");
    SAYS(qemu_event_wait, "the event is NULL");
    SAYS(qemu_lockcnt_count, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_dec, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_dec_and_lock, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_dec_if_lock, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_destroy, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_inc, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_inc_and_unlock, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_init, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_lock, "the lockcnt is NULL");
    SAYS(qemu_lockcnt_unlock, "the lockcnt is NULL");
    SAYS(thread_pool_submit_aio, "the function is NULL");
    SAYS(thread_pool_submit_co, "the function is NULL");
    SAYS(timer_deinit, "the timer is NULL");
    SAYS(timer_del, "the timer is NULL");
    SAYS(timer_expire_time_ns, "the timer is NULL");
    SAYS(timer_expired, "the timer is NULL");
    SAYS(timer_init_full, "the timer is NULL");
    SAYS(timer_mod, "the timer is NULL");
    SAYS(timer_mod_anticipate, "the timer is NULL");
    SAYS(timer_mod_anticipate_ns, "the timer is NULL");
    SAYS(timer_mod_ns, "the timer is NULL");
    SAYS(timer_pending, "the timer is NULL");
    SAYS(yield_until_fd_readable, "called outside a coroutine");
}

int main(void)
{
    const struct test tests[] = {
        TEST(each_says_what_is_wrong),
    };
    return RUN(tests);
}

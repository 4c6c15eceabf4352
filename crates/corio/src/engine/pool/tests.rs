//! The pool on real threads.

use super::patience::SEARCH_MAX_NS;
use super::*;
use crate::sys;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::sync::{Barrier, mpsc::Sender};
use std::thread;
use std::time::Instant;

const LONG: Duration = Duration::from_secs(60);

fn pool(min: usize, max: usize) -> Pool {
    Pool::new("test", min, max, LONG).unwrap()
}

type Boxed = Box<dyn FnOnce() + Send>;

/// A job that owns its closure.
fn job(f: impl FnOnce() + Send + 'static) -> RawJob {
    unsafe fn run(data: NonNull<()>) {
        // SAFETY: `data` is the box leaked below; the pool calls this once.
        let f = unsafe { Box::from_raw(data.cast::<Boxed>().as_ptr()) };
        f();
    }
    let boxed: Box<Boxed> = Box::new(Box::new(f));
    // SAFETY: the box is leaked until `run` or `free` takes it, and its closure is Send.
    unsafe { RawJob::new(NonNull::from(Box::leak(boxed)).cast(), run) }
}

/// Frees the closure of a job that will not run.
fn free(data: NonNull<()>) {
    // SAFETY: the pool has given the job back, so that nobody else takes the box leaked in `job`.
    drop(unsafe { Box::from_raw(data.cast::<Boxed>().as_ptr()) });
}

fn submit(pool: &Pool, f: impl FnOnce() + Send + 'static) -> JobId {
    pool.submit(job(f)).unwrap().id
}

/// Waits for what another thread is about to do.
fn wait_until(what: &str, mut cond: impl FnMut() -> bool) {
    let start = Instant::now();
    while !cond() {
        assert!(start.elapsed() < LONG, "{what} did not come about");
        thread::yield_now();
    }
}

/// Keeps a worker of the pool busy until the sender is dropped.
fn occupy(pool: &Pool) -> Sender<()> {
    let (release, wait) = mpsc::channel::<()>();
    let (started, running) = mpsc::channel();
    submit(pool, move || {
        started.send(()).unwrap();
        let _ = wait.recv();
    });
    running.recv().unwrap();
    release
}

#[test]
fn jobs_start_in_the_order_submitted() {
    // SPEC E3
    let pool = pool(0, 1);
    let release = occupy(&pool);
    let (done, order) = mpsc::channel();
    for i in 0..100 {
        let done = done.clone();
        submit(&pool, move || done.send(i).unwrap());
    }
    assert_eq!(pool.stats().queued, 100);
    drop((release, done));
    assert!(order.iter().eq(0..100));
    assert_eq!(pool.stats().threads, 1);
}

/// A job that says when it runs, and when its end is told.
fn two_steps(said: Sender<&'static str>) -> RawJob {
    type Said = Sender<&'static str>;
    unsafe fn run(data: NonNull<()>) {
        // SAFETY: the box leaked below, which `end` takes.
        let said = unsafe { data.cast::<Said>().as_ref() };
        said.send("run").unwrap();
    }
    unsafe fn end(data: NonNull<()>) {
        // SAFETY: as above; the pool calls this once.
        let said = unsafe { Box::from_raw(data.cast::<Said>().as_ptr()) };
        said.send("end").unwrap();
    }
    let data = NonNull::from(Box::leak(Box::new(said))).cast();
    // SAFETY: the box is leaked until `end` takes it, and is Send.
    unsafe { RawJob::with_end(data, run, end) }
}

#[test]
fn who_is_told_of_an_end_finds_that_worker() {
    // SPEC E3
    let pool = pool(0, 4);
    let (said, seen) = mpsc::channel();
    for _ in 0..2000 {
        pool.submit(two_steps(said.clone())).unwrap();
        assert_eq!((seen.recv(), seen.recv()), (Ok("run"), Ok("end")));
        assert_eq!(pool.stats().threads, 1);
    }
}

#[test]
fn an_end_is_told_before_the_worker_goes_on_or_leaves() {
    // SPEC E3
    let pool = pool(0, 1);
    let release = occupy(&pool);
    let (said, seen) = mpsc::channel();
    for _ in 0..100 {
        pool.submit(two_steps(said.clone())).unwrap();
    }
    drop((release, said));
    pool.shutdown(AtShutdown::RunQueued);
    let seen: Vec<_> = seen.iter().collect();
    assert_eq!(seen, ["run", "end"].repeat(100));
}

#[test]
fn workers_that_are_too_many_tell_the_ends_of_their_jobs() {
    // SPEC E3, I1
    let pool = pool(0, 4);
    let (said, seen) = mpsc::channel();
    for job in 0..1000 {
        pool.set_limits(0, 1 + job % 4).unwrap();
        pool.submit(two_steps(said.clone())).unwrap();
    }
    pool.shutdown(AtShutdown::RunQueued);
    let (runs, ends): (Vec<_>, Vec<_>) = seen.try_iter().partition(|&said| said == "run");
    assert_eq!((runs.len(), ends.len()), (1000, 1000));
}

#[test]
fn an_idle_pool_uses_no_processor_time() {
    // SPEC E3
    let pool = pool(0, 1);
    let (said, seen) = mpsc::channel();
    submit(&pool, move || {
        let mut clock = 0;
        // SAFETY: the call fills in the clock's id.
        let errno = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        said.send((errno, clock)).unwrap();
    });
    let (errno, clock) = seen.recv().unwrap();
    assert_eq!(errno, 0);
    let used = || {
        let mut used = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call fills in the time; the worker is there, as the pool is not idle so long.
        assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut used) }, 0);
        Duration::new(
            used.tv_sec.try_into().unwrap(),
            used.tv_nsec.try_into().unwrap(),
        )
    };
    // It is worth searching for the next one.
    for _ in 0..100 {
        let (said, seen) = mpsc::channel();
        pool.submit(two_steps(said)).unwrap();
        assert_eq!(seen.iter().count(), 2);
    }
    wait_until("sleep", || pool.stats().asleep == 1);
    let before = used();
    thread::sleep(Duration::from_millis(20));
    let after = used() - before;
    assert!(after < Duration::from_millis(2), "{after:?}");
}

#[test]
fn threads_come_by_need_up_to_the_maximum() {
    // SPEC E3
    let pool = pool(0, 3);
    assert_eq!(pool.stats().threads, 0);
    let mut busy = Vec::new();
    for threads in 1..=3 {
        busy.push(occupy(&pool));
        assert_eq!(pool.stats().threads, threads);
    }
    submit(&pool, || {});
    let stats = pool.stats();
    assert_eq!((stats.threads, stats.queued), (3, 1));
    busy.clear();
    wait_until("the fourth job", || pool.stats().queued == 0);
}

#[test]
fn a_sleeping_worker_is_woken_rather_than_a_thread_made() {
    // SPEC E3
    let pool = pool(0, 4);
    drop([occupy(&pool), occupy(&pool)]);
    wait_until("sleep", || pool.stats().asleep == 2);
    for _ in 0..100 {
        drop(occupy(&pool));
        wait_until("sleep", || pool.stats().asleep == 2);
    }
    assert_eq!(pool.stats().threads, 2);
}

#[test]
fn workers_whose_jobs_are_far_apart_do_not_search() {
    // SPEC E3
    let pool = pool(0, 1);
    for _ in 0..3 {
        drop(occupy(&pool));
        wait_until("sleep", || pool.stats().asleep == 1);
        let start = Instant::now();
        while start.elapsed() <= Duration::from_nanos(SEARCH_MAX_NS) {}
    }
    let release = occupy(&pool); // It has got this job and learned from it.
    assert_eq!(pool.shared.state.lock().search_time.ns(), 0);
    drop(release);
}

#[test]
fn a_worker_does_not_search_where_its_submitter_runs() {
    // SPEC E3
    let submitter = thread::spawn(|| {
        let pool = pool(0, 1);
        let release = occupy(&pool); // The worker may run anywhere.
        let here = sys::thread::processor();
        sys::thread::set_cpus(&[here]).unwrap();
        submit(&pool, move || sys::thread::set_cpus(&[here]).unwrap());
        drop(release);
        wait_until("sleep", || pool.stats().asleep == 1);
        for _ in 0..3 {
            drop(occupy(&pool));
            wait_until("sleep", || pool.stats().asleep == 1);
        }
        pool.shared.state.lock().search_time.searches()
    });
    assert_eq!(submitter.join().unwrap(), 0);
}

#[test]
fn a_thread_that_is_confined_has_one_processor() {
    let confined = thread::spawn(|| {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let some = (0..sys::thread::CPUS_MAX).find(|&cpu| allowed.is_set(cpu));
        assert_eq!(sys::thread::processors(), allowed.count());
        sys::thread::set_cpus(&[some.unwrap()]).unwrap();
        sys::thread::processors()
    });
    assert_eq!(confined.join().unwrap(), 1);
}

#[test]
fn idle_workers_above_the_minimum_leave() {
    // SPEC E3
    let pool = Pool::new("test", 1, 8, Duration::from_millis(1)).unwrap();
    let busy: Vec<_> = (0..8).map(|_| occupy(&pool)).collect();
    assert_eq!(pool.stats().threads, 8);
    drop(busy);
    wait_until("one thread", || pool.stats().threads == 1);
    wait_until("sleep", || pool.stats().asleep == 1);
    // The one that stays is the minimum, and no idle time ends it.
    thread::sleep(Duration::from_millis(20));
    assert_eq!(pool.stats().threads, 1);
    pool.set_limits(0, 8).unwrap();
    wait_until("no thread", || pool.stats().threads == 0);
    let (done, end) = mpsc::channel();
    submit(&pool, move || done.send(()).unwrap());
    end.recv().unwrap();
}

#[test]
fn what_has_not_started_can_be_cancelled() {
    // SPEC E3
    let pool = pool(0, 1);
    let release = occupy(&pool);
    let (done, order) = mpsc::channel();
    let jobs: Vec<_> = (0..1000)
        .map(|i| {
            let done = done.clone();
            let queued = job(move || done.send(i).unwrap());
            let data = queued.data();
            (pool.submit(queued).unwrap().id, data)
        })
        .collect();
    for &(id, data) in jobs.iter().step_by(3).chain(jobs.iter().skip(1).step_by(3)) {
        assert!(pool.cancel(id));
        assert!(!pool.cancel(id));
        free(data);
    }
    assert_eq!(pool.stats().queued, 333);
    let places = pool.shared.state.lock().queue.len();
    assert!(places <= 2 * 333 + HOLES_MAX, "{places} places kept");
    drop((release, done));
    assert!(order.iter().eq((2..1000).step_by(3)));
    assert!(!pool.cancel(jobs[2].0));
}

#[test]
fn limits_out_of_range_are_refused_and_change_nothing() {
    // SPEC E3, I1
    for (min, max, message) in [
        (0, 0, "thread_pool_max is 0, which is not 1 to 64"),
        (0, 65, "thread_pool_max is 65, which is not 1 to 64"),
        (
            3,
            2,
            "thread_pool_min is 3, which is not at most thread_pool_max",
        ),
    ] {
        let error = Pool::new("test", min, max, IDLE).unwrap_err();
        assert_eq!(error.to_string(), message);
        let pool = pool(1, 2);
        let error = pool.set_limits(min, max).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(pool.limits(), (1, 2));
    }
    let pool = pool(64, 64);
    pool.set_limits(0, 1).unwrap();
    assert_eq!(pool.limits(), (0, 1));
}

#[test]
fn raising_the_maximum_serves_what_is_queued() {
    // SPEC I1
    let pool = pool(0, 1);
    let _release = occupy(&pool);
    let both = Arc::new(Barrier::new(3));
    for _ in 0..2 {
        let both = Arc::clone(&both);
        submit(&pool, move || {
            both.wait();
        });
    }
    pool.set_limits(0, 3).unwrap();
    both.wait();
}

#[test]
fn lowering_the_maximum_sends_workers_away_and_loses_no_job() {
    // SPEC I1
    let pool = pool(0, 4);
    let busy: Vec<_> = (0..4).map(|_| occupy(&pool)).collect();
    let (done, order) = mpsc::channel();
    for i in 0..100 {
        let done = done.clone();
        submit(&pool, move || done.send(i).unwrap());
    }
    drop(done);
    pool.set_limits(0, 1).unwrap();
    drop(busy);
    let mut ended: Vec<i32> = order.iter().collect();
    ended.sort_unstable();
    assert!(ended.into_iter().eq(0..100));
    wait_until("one thread", || pool.stats().threads == 1);
    // Sleepers leave as well.
    pool.set_limits(0, 4).unwrap();
    drop((0..4).map(|_| occupy(&pool)).collect::<Vec<_>>());
    wait_until("sleep", || pool.stats().asleep == 4);
    pool.set_limits(0, 1).unwrap();
    wait_until("one thread", || pool.stats().threads == 1);
}

#[test]
fn workers_are_named_and_take_no_signal() {
    // SPEC I1, E3
    let pool = Pool::new("a-name-longer-than-linux-keeps", 0, 1, LONG).unwrap();
    let (done, seen) = mpsc::channel();
    submit(&pool, move || {
        let mut mask = core::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: with a null set the call only fills in the mask, which sigismember reads.
        let blocked = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, core::ptr::null(), mask.as_mut_ptr());
            [libc::SIGTERM, libc::SIGUSR1].map(|n| libc::sigismember(mask.as_ptr(), n))
        };
        let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        done.send((blocked, name)).unwrap();
    });
    let (blocked, name) = seen.recv().unwrap();
    assert_eq!((blocked, name.as_str()), ([1, 1], "a-name-longe-w0\n"));
}

#[test]
fn shutdown_runs_what_is_queued() {
    // SPEC E3
    let pool = pool(0, 2);
    let ran = Arc::new(AtomicU64::new(0));
    for _ in 0..100 {
        let ran = Arc::clone(&ran);
        submit(&pool, move || {
            ran.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert!(pool.shutdown(AtShutdown::RunQueued).is_empty());
    assert_eq!(ran.load(Ordering::Relaxed), 100);
    assert_eq!(pool.stats().threads, 0);
    let late = job(|| {});
    let data = late.data();
    let refused = pool.submit(late).unwrap_err();
    free(data);
    assert_eq!(refused.raw_os_error(), Some(libc::ESHUTDOWN));
}

#[test]
fn shutdown_hands_back_what_is_queued() {
    // SPEC E3
    let pool = pool(0, 1);
    let release = occupy(&pool);
    let data: Vec<_> = (0..3)
        .map(|_| {
            let queued = job(|| {});
            let data = queued.data();
            pool.submit(queued).unwrap();
            data
        })
        .collect();
    let back = thread::scope(|s| {
        let back = s.spawn(|| pool.shutdown(AtShutdown::HandBack));
        wait_until("handing back", || pool.stats().queued == 0);
        drop(release);
        back.join().unwrap()
    });
    assert!(back.iter().map(RawJob::data).eq(data));
    for job in back {
        assert!(job.run().is_none());
    }
}

#[test]
fn shutdown_from_a_job_does_not_join_itself() {
    // SPEC E3
    let pool = Arc::new(pool(0, 2));
    let (done, end) = mpsc::channel();
    let own = Arc::clone(&pool);
    submit(&pool, move || {
        own.shutdown(AtShutdown::RunQueued);
        done.send(()).unwrap();
    });
    end.recv().unwrap();
}

#[test]
fn a_refused_thread_is_an_error_only_without_any_worker() {
    // SPEC E3
    let pool = pool(0, 2);
    pool.shared.stack_bytes.store(1 << 60, Ordering::Relaxed);
    let refused = job(|| panic!("a refused job was run"));
    let data = refused.data();
    let message = pool.submit(refused).unwrap_err().to_string();
    free(data);
    assert!(
        message.starts_with("making a thread for the thread pool: "),
        "{message}"
    );
    assert_eq!(
        pool.stats(),
        PoolStats {
            threads: 0,
            asleep: 0,
            queued: 0
        }
    );

    pool.shared.stack_bytes.store(1 << 20, Ordering::Relaxed);
    let release = occupy(&pool);
    pool.shared.stack_bytes.store(1 << 60, Ordering::Relaxed);
    let (done, end) = mpsc::channel();
    submit(&pool, move || done.send(()).unwrap());
    assert_eq!(
        pool.stats(),
        PoolStats {
            threads: 1,
            asleep: 0,
            queued: 1
        }
    );
    drop(release);
    end.recv().unwrap();
}

#[test]
fn a_panic_that_leaves_a_job_aborts_and_says_so() {
    const CHILD: &str = "CORIO_TEST_POOL_PANIC";
    if std::env::var_os(CHILD).is_some() {
        let pool = pool(0, 1);
        submit(&pool, || panic!("on purpose"));
        pool.shutdown(AtShutdown::RunQueued);
        return;
    }
    let name = thread::current().name().unwrap().to_owned();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child
        .args([name.as_str(), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output();
    let output = output.unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("it has to catch it"), "{message}");
}

#[test]
fn every_job_runs_once_or_is_cancelled_under_load() {
    // SPEC E3
    const JOBS: u64 = 20_000;
    let pool = Pool::new("test", 0, 6, Duration::from_micros(50)).unwrap();
    let ran = Arc::new(AtomicU64::new(0));
    let cancelled = AtomicU64::new(0);
    thread::scope(|s| {
        for submitter in 0..3 {
            let (pool, ran, cancelled) = (&pool, &ran, &cancelled);
            s.spawn(move || {
                for i in 0..JOBS {
                    let ran = Arc::clone(ran);
                    let counted = job(move || {
                        ran.fetch_add(1, Ordering::Relaxed);
                    });
                    let data = counted.data();
                    let id = pool.submit(counted).unwrap().id;
                    if i % 7 == submitter && pool.cancel(id) {
                        free(data);
                        cancelled.fetch_add(1, Ordering::Relaxed);
                    }
                    if i % 1000 == 0 {
                        let max = usize::try_from(1 + i / 1000 % 6).unwrap();
                        pool.set_limits(0, max).unwrap();
                    }
                    if i % 64 == 0 {
                        wait_until("an empty queue", || pool.stats().queued == 0);
                    }
                }
            });
        }
    });
    pool.shutdown(AtShutdown::RunQueued);
    let total = ran.load(Ordering::Relaxed) + cancelled.load(Ordering::Relaxed);
    assert_eq!(total, 3 * JOBS);
}

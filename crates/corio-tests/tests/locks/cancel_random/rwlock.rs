//! Reading, writing, going from one to the other and cancelling, beside a model that says who has
//! the lock and who waits for it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::LazyLock;

use corio::sync::{ReadGuard, RwLock, WriteGuard};
use corio::{AioContext, Coroutine};

use super::{Ends, Random, pick, play};

const SEQUENCES: u64 = 3000;
const STEPS: usize = 50;
const WAITERS_MAX: usize = 9;

/// What a coroutine is to the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Waits,
    Reads,
    Writes,
    Gone,
}

/// What a holder does next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Release,
    /// The home has given it up in its place.
    ReleaseAtHome,
    Upgrade,
    Downgrade,
}

/// The model: who has it, and who waits for what, oldest first.
#[derive(Default)]
struct Model {
    readers: Vec<usize>,
    writer: Option<usize>,
    waiting: VecDeque<(usize, Role)>,
}

impl Model {
    fn admits(&self, role: Role) -> bool {
        self.writer.is_none() && (role == Role::Reads || self.readers.is_empty())
    }

    fn take(&mut self, who: usize, role: Role) {
        self.waiting.push_back((who, role));
        self.serve();
    }

    fn serve(&mut self) {
        while let Some(&(who, role)) = self.waiting.front()
            && self.admits(role)
        {
            self.waiting.pop_front();
            match role {
                Role::Reads => self.readers.push(who),
                _ => self.writer = Some(who),
            }
        }
    }

    /// It has nothing any more, and waits for nothing.
    fn leave(&mut self, who: usize) {
        self.readers.retain(|&reader| reader != who);
        self.writer = self.writer.filter(|&writer| writer != who);
        self.waiting.retain(|&(waiter, _)| waiter != who);
        self.serve();
    }

    fn upgrade(&mut self, who: usize) {
        self.readers.retain(|&reader| reader != who);
        self.take(who, Role::Writes);
    }

    fn downgrade(&mut self, who: usize) {
        self.writer = None;
        self.readers.push(who);
        self.serve();
    }

    fn role(&self, who: usize) -> Role {
        if self.writer == Some(who) {
            Role::Writes
        } else if self.readers.contains(&who) {
            Role::Reads
        } else if self.waiting.iter().any(|&(waiter, _)| waiter == who) {
            Role::Waits
        } else {
            Role::Gone
        }
    }

    fn all(&self) -> Vec<usize> {
        let waiting = self.waiting.iter().map(|&(who, _)| who);
        let holders = self.readers.iter().copied().chain(self.writer);
        holders.chain(waiting).collect()
    }
}

/// For all sequences, so that guards may lie anywhere; each leaves it free.
static LOCK: LazyLock<RwLock<usize>> = LazyLock::new(RwLock::default);

/// What a coroutine and the test tell each other.
struct Peer {
    role: Cell<Role>,
    next: Cell<Next>,
    /// What a coroutine that is suspended holds.
    hold: Cell<Option<Hold>>,
}

enum Hold {
    Read(ReadGuard<'static, usize>),
    Write(WriteGuard<'static, usize>),
}

impl Hold {
    fn role(&self) -> Role {
        match self {
            Hold::Read(_) => Role::Reads,
            Hold::Write(_) => Role::Writes,
        }
    }
}

/// Takes the lock, and does with it what it is told each time it is entered.
fn body(peer: &Peer, takes: Role) {
    struct GivesUp<'a>(&'a Peer);
    impl Drop for GivesUp<'_> {
        fn drop(&mut self) {
            drop(self.0.hold.take());
        }
    }
    let _gives_up = GivesUp(peer);
    let mut hold = match takes {
        Role::Reads => Hold::Read(LOCK.read()),
        _ => Hold::Write(LOCK.write()),
    };
    loop {
        peer.role.set(hold.role());
        let seen = match &mut hold {
            Hold::Read(guard) => **guard,
            Hold::Write(guard) => {
                **guard += 1;
                **guard
            }
        };
        peer.hold.set(Some(hold));
        corio::suspend();
        let Some(held) = peer.hold.take() else {
            return; // Given up already.
        };
        peer.role.set(Role::Waits);
        hold = match (held, peer.next.get()) {
            (Hold::Read(guard), Next::Upgrade) => {
                assert_eq!(*guard, seen, "somebody wrote beside a reader");
                Hold::Write(ReadGuard::upgrade(guard))
            }
            (Hold::Write(guard), Next::Downgrade) => {
                assert_eq!(*guard, seen, "somebody wrote beside a writer");
                Hold::Read(WriteGuard::downgrade(guard))
            }
            (_, _) => return,
        };
    }
}

struct Scene<'a> {
    context: &'a AioContext,
    model: Model,
    peers: Vec<Rc<Peer>>,
    coroutines: Vec<Option<Coroutine>>,
    /// Cancelled after the lock was granted to them and before they knew: they go at their next
    /// turn.
    going: Vec<usize>,
    unwound: Rc<Cell<usize>>,
}

impl Scene<'_> {
    fn take(&mut self, takes: Role) {
        let ends = Ends(Rc::clone(&self.unwound));
        let peer = Rc::new(Peer {
            role: Cell::new(Role::Waits),
            next: Cell::new(Next::Release),
            hold: Cell::default(),
        });
        self.peers.push(Rc::clone(&peer));
        let co = Coroutine::new(move || {
            let _ends = ends;
            body(&peer, takes);
        });
        co.enter();
        self.model.take(self.coroutines.len(), takes);
        self.coroutines.push(Some(co));
    }

    /// One of those that know that they have the lock.
    fn holder(&self, random: &mut Random) -> Option<usize> {
        let knows = |&who: &usize| {
            let role = self.peers[who].role.get();
            self.coroutines[who].is_some() && matches!(role, Role::Reads | Role::Writes)
        };
        let holders: Vec<usize> = self.model.all().into_iter().filter(knows).collect();
        (!holders.is_empty()).then(|| holders[random.below(holders.len())])
    }

    fn go_on(&mut self, random: &mut Random, next: Next) {
        let Some(who) = self.holder(random) else {
            return;
        };
        match (next, self.model.role(who)) {
            (Next::Upgrade, Role::Reads) => self.model.upgrade(who),
            (Next::Downgrade, Role::Writes) => self.model.downgrade(who),
            _ => self.model.leave(who),
        }
        self.peers[who].next.set(next);
        if matches!(next, Next::ReleaseAtHome) {
            // Outside a coroutine: those that are woken do not run before their turn comes.
            drop(self.peers[who].hold.take());
        }
        let co = self.coroutines[who].as_ref().unwrap();
        co.enter();
        if co.is_done() {
            self.coroutines[who] = None;
        }
    }

    /// Anyone: it waits, or has the lock, whether it knows or has been served just now.
    fn cancel(&mut self, random: &mut Random) {
        let all = self.model.all();
        let all: Vec<usize> = all
            .into_iter()
            .filter(|&who| self.coroutines[who].is_some())
            .collect();
        if all.is_empty() {
            return;
        }
        let who = all[random.below(all.len())];
        let served_unawares =
            self.model.role(who) != Role::Waits && self.peers[who].role.get() == Role::Waits;
        self.coroutines[who] = None;
        if served_unawares {
            self.going.push(who);
        } else {
            self.model.leave(who);
        }
    }

    fn turn(&mut self) {
        while self.context.poll(false).unwrap() {}
        for who in std::mem::take(&mut self.going) {
            self.model.leave(who);
        }
        for who in self.model.all() {
            let (expected, seen) = (self.model.role(who), self.peers[who].role.get());
            assert_eq!(seen, expected, "number {who}");
        }
        let gone = self.coroutines.len() - self.model.all().len();
        assert_eq!(self.unwound.get(), gone, "frames that have ended");
    }

    /// Whoever tries gets it exactly if the model says so.
    fn check(&self) {
        let nobody_waits = self.model.waiting.is_empty();
        let (read, write) = (LOCK.try_read(), LOCK.try_write());
        let may_read = nobody_waits && self.model.admits(Role::Reads);
        assert_eq!(read.is_some(), may_read);
        assert!(write.is_none() || read.is_none());
        drop((read, write));
        let may_write = nobody_waits && self.model.admits(Role::Writes);
        assert_eq!(LOCK.try_write().is_some(), may_write);
    }
}

fn sequence(context: &AioContext, random: &mut Random) {
    let mut scene = Scene {
        context,
        model: Model::default(),
        peers: Vec::new(),
        coroutines: Vec::new(),
        going: Vec::new(),
        unwound: Rc::default(),
    };
    // Some have few that give it up, so that lines get long; some have many that cancel.
    let weights: [usize; 9] = core::array::from_fn(|_| random.below(4) + 1);
    for _ in 0..STEPS {
        match pick(random, &weights) {
            step @ 0..2 if scene.model.waiting.len() < WAITERS_MAX => {
                scene.take([Role::Reads, Role::Writes][step]);
            }
            2 => scene.go_on(random, Next::Release),
            3 => scene.go_on(random, Next::ReleaseAtHome),
            4 => scene.go_on(random, Next::Upgrade),
            5 => scene.go_on(random, Next::Downgrade),
            6 | 7 => scene.cancel(random),
            _ => scene.turn(),
        }
        scene.check();
    }
    scene.turn();
    while !scene.model.all().is_empty() {
        scene.go_on(random, Next::Release);
        scene.turn();
    }
    assert!(LOCK.try_write().is_some(), "nobody has it any more");
}

// SPEC L2, C12
#[test]
fn whoever_is_not_cancelled_reads_and_writes_in_its_turn() {
    play(SEQUENCES, sequence);
}

//! Whether a request may be carried out: everything that can be said of it before the disk is
//! asked.
//!
//! A pure function from a header to an [`Action`] or a [`Refusal`], so that each rule has its test
//! and nothing half-checked reaches the disk.

use corio_block::{Length, Offset};

use crate::wire::{Command, CommandFlags, Errno, HeaderStyle, Request};

/// What a driver holds in memory at most while it reads a range ahead.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// A request that may be carried out. Ranges lie within the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read {
        offset: Offset,
        len: usize,
        whole: bool,
    },
    Write {
        offset: Offset,
        len: usize,
        fua: bool,
    },
    Flush,
    Trim {
        offset: Offset,
        len: Length,
        fua: bool,
    },
    Zero {
        offset: Offset,
        len: Length,
        how: ZeroHow,
    },
    Cache {
        offset: Offset,
        len: Length,
    },
    Status {
        offset: Offset,
        len: Length,
        one: bool,
    },
    /// Nothing to do: a range of no bytes.
    Nothing,
    Disconnect,
}

/// The flags of a WRITE_ZEROES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroHow {
    pub(super) fua: bool,
    pub(super) no_hole: bool,
    pub(super) fast: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: Errno,
    /// For people.
    pub(super) message: &'static str,
}

/// What was agreed on, and what the export is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) style: HeaderStyle,
    /// Whether `base:allocation` was selected.
    pub(super) allocation: bool,
    pub(super) read_only: bool,
    /// Size of the export in bytes.
    pub(super) size: u64,
    /// Longest READ or WRITE.
    pub(super) request_bytes_max: u32,
}

const fn refused(error: Errno, message: &'static str) -> Refusal {
    Refusal { error, message }
}

impl Terms {
    /// What to do, or why not.
    #[inline]
    pub(super) fn check(&self, request: &Request) -> Result<Action, Refusal> {
        let flags = request.flags;
        if !self.allowed_flags(request.command).contains(flags) {
            return Err(refused(
                Errno::EINVAL,
                "a flag that this command does not have",
            ));
        }
        let fua = flags.contains(CommandFlags::FUA);
        let offset = Offset(request.offset);
        let len = Length(request.length);
        match request.command {
            Command::READ => self.check_read(request),
            Command::WRITE => {
                let len = self.data_len(request, Errno::EINVAL)?;
                self.modifies(request)?;
                Ok(Action::Write { offset, len, fua }.unless_empty(request))
            }
            Command::DISC => Ok(Action::Disconnect),
            Command::FLUSH => {
                if request.offset != 0 || request.length != 0 {
                    return Err(refused(Errno::EINVAL, "a FLUSH of a range"));
                }
                Ok(Action::Flush)
            }
            Command::TRIM => {
                self.permits_writes()?;
                self.within(request, Errno::EINVAL)?;
                Ok(Action::Trim { offset, len, fua }.unless_empty(request))
            }
            Command::WRITE_ZEROES => {
                self.modifies(request)?;
                let how = ZeroHow {
                    fua,
                    no_hole: flags.contains(CommandFlags::NO_HOLE),
                    fast: flags.contains(CommandFlags::FAST_ZERO),
                };
                Ok(Action::Zero { offset, len, how }.unless_empty(request))
            }
            Command::CACHE => {
                self.within(request, Errno::EINVAL)?;
                Ok(Action::Cache { offset, len }.unless_empty(request))
            }
            Command::BLOCK_STATUS => {
                if !self.allocation {
                    return Err(refused(Errno::EINVAL, "no metadata context was selected"));
                }
                if request.length == 0 {
                    return Err(refused(Errno::EINVAL, "a block status of no bytes"));
                }
                self.within(request, Errno::EINVAL)?;
                let one = flags.contains(CommandFlags::REQ_ONE);
                Ok(Action::Status { offset, len, one })
            }
            _ => Err(refused(Errno::EINVAL, "an unknown command")),
        }
    }

    #[inline]
    fn check_read(&self, request: &Request) -> Result<Action, Refusal> {
        let whole = request.flags.contains(CommandFlags::DF);
        let too_long = if whole {
            Errno::EOVERFLOW
        } else {
            Errno::EINVAL
        };
        let len = self.data_len(request, too_long)?;
        self.within(request, Errno::EINVAL)?;
        Ok(Action::Read {
            offset: Offset(request.offset),
            len,
            whole,
        }
        .unless_empty(request))
    }

    /// The flags a command may carry. FUA is valid for all of them.
    #[inline]
    fn allowed_flags(&self, command: Command) -> CommandFlags {
        let own = match command {
            Command::READ if self.style.has_chunks() => CommandFlags::DF,
            Command::WRITE if self.style == HeaderStyle::Extended => CommandFlags::PAYLOAD_LEN,
            Command::WRITE_ZEROES => CommandFlags::NO_HOLE.union(CommandFlags::FAST_ZERO),
            Command::BLOCK_STATUS => CommandFlags::REQ_ONE,
            // Ends the connection whatever it carries, and gets no reply that could refuse it.
            Command::DISC => CommandFlags::all(),
            _ => CommandFlags::empty(),
        };
        own.union(CommandFlags::FUA)
    }

    #[inline]
    fn within(&self, request: &Request, error: Errno) -> Result<(), Refusal> {
        match request.offset.checked_add(request.length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(refused(error, "past the end of the export")),
        }
    }

    fn permits_writes(&self) -> Result<(), Refusal> {
        if self.read_only {
            return Err(refused(Errno::EPERM, "the export is read-only"));
        }
        Ok(())
    }

    fn modifies(&self, request: &Request) -> Result<(), Refusal> {
        self.permits_writes()?;
        self.within(request, Errno::ENOSPC)
    }

    /// The length of a request whose data is held in memory.
    #[inline]
    fn data_len(&self, request: &Request, error: Errno) -> Result<usize, Refusal> {
        match usize::try_from(request.length) {
            Ok(len) if request.length <= u64::from(self.request_bytes_max) => Ok(len),
            _ => Err(refused(error, "longer than the maximum block size")),
        }
    }
}

impl Action {
    #[inline]
    fn unless_empty(self, request: &Request) -> Self {
        if request.length == 0 {
            Self::Nothing
        } else {
            self
        }
    }

    /// Bytes of data it holds in memory while it is served.
    #[inline]
    pub(super) fn data_len(&self) -> usize {
        match *self {
            Self::Read { len, .. } | Self::Write { len, .. } => len,
            Self::Cache { len, .. } => usize::try_from(len.0)
                .unwrap_or(READ_AHEAD_BYTES)
                .min(READ_AHEAD_BYTES),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cookie;

    const SIZE: u64 = 1 << 20;
    const NONE: CommandFlags = CommandFlags::empty();

    fn terms(style: HeaderStyle) -> Terms {
        Terms {
            style,
            allocation: true,
            read_only: false,
            size: SIZE,
            request_bytes_max: 64 << 10,
        }
    }

    fn check(terms: Terms, command: Command, flags: CommandFlags, at: u64, len: u64) -> Outcome {
        let request = Request {
            flags,
            command,
            cookie: Cookie(1),
            offset: at,
            length: len,
        };
        terms.check(&request).map_err(|refusal| refusal.error)
    }

    type Outcome = Result<Action, Errno>;

    #[test]
    fn each_command_is_taken() {
        let t = terms(HeaderStyle::Structured);
        let (offset, len) = (Offset(512), Length(1024));
        let fua = CommandFlags::FUA;
        for (command, flags, expected) in [
            (
                Command::READ,
                NONE,
                Action::Read {
                    offset,
                    len: 1024,
                    whole: false,
                },
            ),
            (
                Command::READ,
                CommandFlags::DF,
                Action::Read {
                    offset,
                    len: 1024,
                    whole: true,
                },
            ),
            (
                Command::READ,
                fua,
                Action::Read {
                    offset,
                    len: 1024,
                    whole: false,
                },
            ),
            (
                Command::WRITE,
                NONE,
                Action::Write {
                    offset,
                    len: 1024,
                    fua: false,
                },
            ),
            (
                Command::WRITE,
                fua,
                Action::Write {
                    offset,
                    len: 1024,
                    fua: true,
                },
            ),
            (
                Command::TRIM,
                NONE,
                Action::Trim {
                    offset,
                    len,
                    fua: false,
                },
            ),
            (
                Command::TRIM,
                fua,
                Action::Trim {
                    offset,
                    len,
                    fua: true,
                },
            ),
            (Command::CACHE, NONE, Action::Cache { offset, len }),
            (
                Command::BLOCK_STATUS,
                NONE,
                Action::Status {
                    offset,
                    len,
                    one: false,
                },
            ),
            (
                Command::BLOCK_STATUS,
                CommandFlags::REQ_ONE,
                Action::Status {
                    offset,
                    len,
                    one: true,
                },
            ),
        ] {
            assert_eq!(
                check(t, command, flags, 512, 1024),
                Ok(expected),
                "{command:?}"
            );
        }
        for (fua, no_hole, fast) in [
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (true, true, true),
        ] {
            let mut flags = NONE;
            flags.set(CommandFlags::FUA, fua);
            flags.set(CommandFlags::NO_HOLE, no_hole);
            flags.set(CommandFlags::FAST_ZERO, fast);
            let how = ZeroHow { fua, no_hole, fast };
            assert_eq!(
                check(t, Command::WRITE_ZEROES, flags, 512, 1024),
                Ok(Action::Zero { offset, len, how })
            );
        }
        assert_eq!(check(t, Command::FLUSH, NONE, 0, 0), Ok(Action::Flush));
        assert_eq!(check(t, Command::DISC, NONE, 0, 0), Ok(Action::Disconnect));
    }

    #[test]
    fn past_the_end_is_einval_for_reads_and_enospc_for_writes() {
        for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
            let t = terms(style);
            let payload = if style == HeaderStyle::Extended {
                CommandFlags::PAYLOAD_LEN
            } else {
                NONE
            };
            for (at, len) in [
                (SIZE - 512, 513),
                (SIZE, 1),
                (u64::MAX, 1),
                (u64::MAX - 5, 4096),
            ] {
                let answer = |command, flags| check(t, command, flags, at, len);
                assert_eq!(answer(Command::READ, NONE), Err(Errno::EINVAL));
                assert_eq!(answer(Command::WRITE, payload), Err(Errno::ENOSPC));
                assert_eq!(answer(Command::TRIM, NONE), Err(Errno::EINVAL));
                assert_eq!(answer(Command::WRITE_ZEROES, NONE), Err(Errno::ENOSPC));
                assert_eq!(answer(Command::CACHE, NONE), Err(Errno::EINVAL));
                assert_eq!(answer(Command::BLOCK_STATUS, NONE), Err(Errno::EINVAL));
            }
            assert!(check(t, Command::READ, NONE, SIZE - 512, 512).is_ok());
            assert!(check(t, Command::WRITE, payload, SIZE - 512, 512).is_ok());
        }
    }

    #[test]
    fn read_only_is_eperm_for_what_modifies() {
        let t = Terms {
            read_only: true,
            ..terms(HeaderStyle::Structured)
        };
        for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
            assert_eq!(
                check(t, command, NONE, 0, 512),
                Err(Errno::EPERM),
                "{command:?}"
            );
        }
        for command in [Command::READ, Command::CACHE, Command::BLOCK_STATUS] {
            assert!(check(t, command, NONE, 0, 512).is_ok(), "{command:?}");
        }
        assert!(check(t, Command::FLUSH, NONE, 0, 0).is_ok());
    }

    #[test]
    fn longest_request_is_enforced_where_data_is_held() {
        let t = terms(HeaderStyle::Structured);
        let max = u64::from(t.request_bytes_max);
        assert!(check(t, Command::READ, NONE, 0, max).is_ok());
        assert_eq!(
            check(t, Command::READ, NONE, 0, max + 1),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            check(t, Command::READ, CommandFlags::DF, 0, max + 1),
            Err(Errno::EOVERFLOW)
        );
        assert_eq!(
            check(t, Command::WRITE, NONE, 0, max + 1),
            Err(Errno::EINVAL)
        );
        for command in [
            Command::TRIM,
            Command::WRITE_ZEROES,
            Command::CACHE,
            Command::BLOCK_STATUS,
        ] {
            assert!(
                check(t, command, NONE, 0, SIZE).is_ok(),
                "{command:?} holds no data"
            );
        }
    }

    #[test]
    fn flags_belong_to_their_commands() {
        let t = terms(HeaderStyle::Structured);
        for (command, flag) in [
            (Command::READ, CommandFlags::NO_HOLE),
            (Command::READ, CommandFlags::PAYLOAD_LEN),
            (Command::WRITE, CommandFlags::DF),
            (Command::WRITE, CommandFlags::PAYLOAD_LEN),
            (Command::TRIM, CommandFlags::FAST_ZERO),
            (Command::CACHE, CommandFlags::REQ_ONE),
            (Command::BLOCK_STATUS, CommandFlags::DF),
            (Command::WRITE_ZEROES, CommandFlags::REQ_ONE),
            (Command::READ, CommandFlags::from_bits_retain(1 << 15)),
        ] {
            assert_eq!(
                check(t, command, flag, 0, 512),
                Err(Errno::EINVAL),
                "{command:?} {flag:?}"
            );
        }
        assert_eq!(
            check(t, Command::FLUSH, CommandFlags::DF, 0, 0),
            Err(Errno::EINVAL)
        );
        let simple = terms(HeaderStyle::Simple);
        let answer = check(simple, Command::READ, CommandFlags::DF, 0, 512);
        assert_eq!(answer, Err(Errno::EINVAL), "DF needs chunks");
        let extended = terms(HeaderStyle::Extended);
        for flags in [CommandFlags::PAYLOAD_LEN, NONE] {
            assert!(
                check(extended, Command::WRITE, flags, 0, 512).is_ok(),
                "{flags:?}"
            );
        }
        let answer = check(extended, Command::TRIM, CommandFlags::PAYLOAD_LEN, 0, 512);
        assert_eq!(answer, Err(Errno::EINVAL));
    }

    #[test]
    fn odd_ones_are_einval_or_nothing() {
        let t = terms(HeaderStyle::Structured);
        for command in [Command::RESIZE, Command(9), Command(u16::MAX)] {
            assert_eq!(check(t, command, NONE, 0, 512), Err(Errno::EINVAL));
        }
        assert_eq!(check(t, Command::FLUSH, NONE, 0, 1), Err(Errno::EINVAL));
        assert_eq!(check(t, Command::FLUSH, NONE, 1, 0), Err(Errno::EINVAL));
        assert_eq!(
            check(t, Command::BLOCK_STATUS, NONE, 0, 0),
            Err(Errno::EINVAL)
        );
        let deaf = Terms {
            allocation: false,
            ..t
        };
        assert_eq!(
            check(deaf, Command::BLOCK_STATUS, NONE, 0, 512),
            Err(Errno::EINVAL)
        );
        for command in [
            Command::READ,
            Command::WRITE,
            Command::TRIM,
            Command::WRITE_ZEROES,
            Command::CACHE,
        ] {
            assert_eq!(
                check(t, command, NONE, SIZE, 0),
                Ok(Action::Nothing),
                "{command:?}"
            );
        }
    }
}

//! The command line: what is asked for, checked as far as it can be without touching the system.
//!
//! Every text here is user documentation: `corio serve --help` is the manual page.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::serve::address::Address;
use crate::size;

/// The NBD protocol's limit on names and descriptions, in bytes.
const STRING_LEN_MAX: usize = 4096;
/// Threads that serve clients, at most, if nobody asks for more.
const IOTHREADS_DEFAULT_MAX: u32 = 8;

/// For how long a loop polls if nobody says otherwise: a client on the same machine needs some 20 us
/// from a reply to its next request, and as long again to be woken, and to wake the loop.
const POLL_NS_DEFAULT: u64 = 50_000;
/// A second, which is the runtime's own limit.
const POLL_NS_MAX: u64 = 1_000_000_000;

/// The size of the memory disk when nobody says otherwise.
pub(crate) const MEMORY_DEFAULT: u64 = 1 << 30;

/// Serves disks to other programs and machines.
#[derive(Debug, Parser)]
#[command(
    name = "corio",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The program's jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(Box<ServeArgs>),
}

/// Serve a disk image, a block device or a memory disk over NBD
///
/// Serves one disk to NBD clients (nbd-client, qemu, libnbd's tools and others) until it gets
/// SIGTERM or SIGINT. Without IMAGE the disk is in memory, 1 GiB large, reads as zeroes, takes up
/// only what is written to it, and is gone when the program ends.
///
/// For every address it listens on, one line `listening URI` goes to standard output, then one
/// line with a client command to try. Messages go to standard error.
///
/// Without TLS (--tls-cert), clients are not authenticated and nothing is encrypted: listen on
/// loopback or on a Unix socket (the default is loopback only), or on a network where every machine
/// may read and write the disk. With it nothing can be read or changed on the way; who may connect
/// is decided by --tls-client-ca alone.
#[derive(Args, Debug)]
#[command(after_long_help = MANUAL)]
pub(crate) struct ServeArgs {
    /// Raw image file or block device to serve; without it, a memory disk
    ///
    /// The image is locked against other writers in the way QEMU's tools lock it, so that both
    /// notice each other; a block device is opened exclusively, also to read it only. A file whose
    /// size is no multiple of 512 is served to the byte.
    #[arg(value_name = "IMAGE", conflicts_with = "memory")]
    pub(crate) image: Option<PathBuf>,

    /// Format of IMAGE
    ///
    /// Only raw is known: the bytes of the file are the bytes of the disk. An image whose content
    /// looks like another format is refused unless this option says raw, because a client that
    /// may write its first bytes could otherwise choose how they are read the next time.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        requires = "image",
        help_heading = "Disk"
    )]
    pub(crate) format: Option<Format>,

    /// Size of the memory disk, as 512M or 10GiB [default: 1G]
    ///
    /// A whole number of bytes, or one followed by K, M, G, T (or KiB, MiB, ..: powers of 1024), or
    /// by kB, MB, GB, TB (powers of 1000).
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size::parse,
        allow_negative_numbers = true,
        help_heading = "Disk"
    )]
    pub(crate) memory: Option<u64>,

    /// Refuse writes
    ///
    /// The image is opened for reading only, so that a file without write permission will do, and
    /// clients are told.
    #[arg(long, help_heading = "Disk")]
    pub(crate) read_only: bool,

    /// How the image is read and written
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        default_value_t = Cache::Writeback,
        help_heading = "Disk"
    )]
    pub(crate) cache: Cache,

    /// What a client's trim does to the image
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        default_value_t = Discard::Unmap,
        help_heading = "Disk"
    )]
    pub(crate) discard: Discard,

    /// Name of the export, as clients ask for it
    ///
    /// Up to 4096 bytes; the default is the empty name. Clients that ask for no name get the export
    /// whatever its name is.
    #[arg(
        long,
        value_name = "EXPORT",
        default_value = "",
        hide_default_value = true,
        value_parser = nbd_string,
        help_heading = "Export"
    )]
    pub(crate) name: String,

    /// Text for people, shown by clients that list exports
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        value_parser = nbd_string,
        help_heading = "Export"
    )]
    pub(crate) description: String,

    /// Listen on this TCP address; may be repeated [default: localhost:10809]
    ///
    /// HOST is a name, an IPv4 address, an IPv6 address in brackets, localhost (127.0.0.1 and ::1,
    /// whichever exist) or * (every address of the machine, IPv4 and IPv6). Port 0 picks a free
    /// one and prints it. The default applies when there is no --listen, no --unix and no socket
    /// from systemd.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Addresses")]
    pub(crate) listen: Vec<Address>,

    /// Listen on a Unix socket at this path; may be repeated
    ///
    /// A socket left over from a dead server is replaced; anything else at PATH is left alone and
    /// is an error. The socket is removed at exit.
    #[arg(long, value_name = "PATH", help_heading = "Addresses")]
    pub(crate) unix: Vec<PathBuf>,

    /// Permissions of the Unix sockets, as 0660
    ///
    /// A client needs write permission to connect. By default they are those the umask leaves.
    #[arg(
        long,
        value_name = "OCTAL",
        value_parser = octal_mode,
        requires = "unix",
        help_heading = "Addresses"
    )]
    pub(crate) unix_mode: Option<u32>,

    /// Speak TLS, and show this certificate to clients
    ///
    /// A PEM file: the server's own certificate first, then those between it and its CA. Clients
    /// that check it look for the name they connect to, such as localhost. TLS 1.2 and 1.3 are
    /// spoken, from NBD's STARTTLS on; Unix sockets speak it too.
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "TLS")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of the certificate
    ///
    /// A PEM file with an RSA, ECDSA or Ed25519 key (PKCS#8, PKCS#1 or SEC1), not encrypted.
    /// Certificates and keys are read once, at the start.
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Serve only clients that show a certificate signed by one of these CAs
    ///
    /// A PEM file. Without it every client is served that reaches the server.
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Whether clients may do without TLS [default: required]
    ///
    /// Where it is only allowed, somebody between client and server can make both believe that the
    /// other does not speak it, unless the client insists.
    #[arg(
        long,
        value_name = "MODE",
        value_enum,
        requires = "tls_cert",
        help_heading = "TLS"
    )]
    pub(crate) tls: Option<TlsMode>,

    /// Clients served at the same time; one more is refused at once
    ///
    /// It is told why when it asks for the export. In a rush of clients some are refused without a
    /// word.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=100_000),
        help_heading = "Limits and threads"
    )]
    pub(crate) connections: u32,

    /// Threads that serve clients
    ///
    /// Each runs an event loop; a new client goes to the one with the fewest clients and stays
    /// there. One thread serves many clients; more help when one is busy all the time. By default
    /// there is one for each processor that the program may use, and at most 8.
    #[arg(
        long,
        value_name = "N",
        default_value_t = iothreads_default(),
        hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=256),
        help_heading = "Limits and threads"
    )]
    pub(crate) iothreads: u32,

    /// How disk requests reach the kernel
    #[arg(
        long,
        value_name = "ENGINE",
        value_enum,
        default_value_t = Engine::Auto,
        help_heading = "Limits and threads"
    )]
    pub(crate) engine: Engine,

    /// How the event loops wait for clients
    #[arg(
        long,
        value_name = "MONITOR",
        value_enum,
        default_value_t = Monitor::Auto,
        help_heading = "Limits and threads"
    )]
    pub(crate) monitor: Monitor,

    /// How long an event loop asks again and again for the next request before it sleeps, at most
    ///
    /// In nanoseconds; 0 for not at all. A client with few requests under way is answered twice as
    /// fast then, as nobody has to be woken. The loop learns how long it is worth it, and sleeps at
    /// once while clients take longer. Where they take nearly as long it may keep a processor busy.
    /// The default is 50000, and 0 where there is only one processor.
    #[arg(
        long,
        value_name = "NS",
        default_value_t = poll_max_ns_default(),
        hide_default_value = true,
        value_parser = clap::value_parser!(u64).range(..=POLL_NS_MAX),
        help_heading = "Limits and threads"
    )]
    pub(crate) poll_max_ns: u64,

    /// Run a shell command while serving, and stop when it ends
    ///
    /// CMD is given to `sh -c` once clients can connect, with the address in the environment
    /// variable `uri` (and CORIO_URI). corio exits with the command's status, or 128 + N if
    /// signal N killed it. Standard output is then the command's: the lines that say where corio
    /// listens go to standard error.
    #[arg(long, value_name = "CMD", help_heading = "Running")]
    pub(crate) run: Option<String>,

    /// Write the process number to this file once clients can connect; removed at exit
    #[arg(long, value_name = "PATH", help_heading = "Running")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Which messages go to standard error: this level and the graver ones
    #[arg(
        long,
        value_name = "LEVEL",
        value_enum,
        default_value_t = LogLevel::Warn,
        help_heading = "Running"
    )]
    pub(crate) log: LogLevel,
}

/// What follows the options in `corio serve --help`.
const MANUAL: &str = "\
Examples:
  corio serve
          A 1 GiB memory disk at nbd://localhost:10809/
  corio serve --read-only disk.raw --listen '*:10809' --name disk
          disk.raw for every machine that reaches this one, at nbd://HOST/disk
  corio serve disk.raw --unix /run/disk.sock --unix-mode 0660
          disk.raw for the programs of this machine that may write to the socket
  corio serve disk.raw --listen localhost:0 --run 'nbdcopy \"$uri\" copy.raw'
          Copies through a server that lives as long as the copy
  corio serve disk.raw --listen '*:10809' --tls-cert server-cert.pem --tls-key server-key.pem \\
      --tls-client-ca ca-cert.pem
          disk.raw for every client that has a certificate of that CA, encrypted, at nbds://HOST/

TLS:
  libnbd's tools take nbds://HOST/?tls-certificates=DIR, where DIR has ca-cert.pem and, if the
  server asks for a certificate, client-cert.pem and client-key.pem. qemu takes
  --object tls-creds-x509,id=tls0,endpoint=client,dir=DIR and --image-opts
  driver=nbd,host=HOST,port=10809,tls-creds=tls0 with the same files. If DIR is where --tls-cert
  is, the line to try and the uri of --run name it.

Signals:
  SIGTERM, SIGINT and SIGHUP end the program: no new clients, requests under way finish, what was
  written is flushed, within 5 seconds. What takes longer is named and given up, exit status 1. A
  second signal ends it at once, exit status 128 + signal. SIGHUP is ignored under nohup.

Slow and dead clients:
  A client that does not take its replies, such as a paused VM, is waited for as long as it takes;
  nothing more is read from it meanwhile. One that is dead, so that its machine acknowledges
  nothing, is given up after 5 minutes, after some 10 if it had not been reading. The handshake has
  to be over within 10 seconds.

systemd:
  Readiness is reported (Type=notify). Sockets from a socket unit (ListenStream=, Accept=no) are
  served besides those of --listen and --unix; the default address is then not used.

Exit status:
  0  ended by a signal, everything flushed
  1  an error, said in one line on standard error
  2  the command line is wrong
  With --run: the command's, unless corio itself failed.";

/// Image formats that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the file are the bytes of the disk
    Raw,
}

/// `--cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// Through the page cache; a client's flush makes it durable
    Writeback,
    /// Past the page cache (O_DIRECT); unaligned requests still work
    None,
}

/// `--discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Discard {
    /// Gives the space back, where the file system or device can
    Unmap,
    /// Nothing: space once used stays allocated
    Ignore,
}

/// `--tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsMode {
    /// Clients that do without are refused
    Required,
    /// Clients choose
    Allowed,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// io_uring where it works; else Linux AIO with --cache none, else threads
    Auto,
    /// io_uring; where it is refused, threads, with a warning
    #[value(name = "io_uring")]
    IoUring,
    /// Linux AIO, of an image with --cache none; where it is refused, threads, with a warning
    LinuxAio,
    /// A pool of threads that make blocking calls
    Threads,
}

/// `--monitor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Monitor {
    /// The one that measures best of those that work here
    Auto,
    /// epoll
    Epoll,
    /// io_uring; where it is refused, epoll, with a warning
    #[value(name = "io_uring")]
    IoUring,
    /// poll, until a loop has 64 descriptors; then epoll
    Poll,
}

/// `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing but the error that ends the program
    Off,
    /// What lost data or service
    Error,
    /// What somebody should look at
    Warn,
    /// Clients coming and going, and what was chosen at start
    Info,
    /// Protocol steps
    Debug,
    /// Every request
    Trace,
}

/// One for each processor that the program may use, up to a bound.
fn iothreads_default() -> u32 {
    u32::try_from(processors()).map_or(IOTHREADS_DEFAULT_MAX, |n| n.min(IOTHREADS_DEFAULT_MAX))
}

/// How many the program may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where there is one processor it is the client's that is polled for.
fn poll_max_ns_default() -> u64 {
    match processors() {
        1 => 0,
        _ => POLL_NS_DEFAULT,
    }
}

/// An export's name or description, within the protocol's limit.
fn nbd_string(text: &str) -> Result<String, String> {
    if text.len() > STRING_LEN_MAX {
        return Err(format!(
            "{} bytes long, the protocol allows {STRING_LEN_MAX}",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

/// File permissions in octal.
fn octal_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err("bad mode: give octal permissions from 0 to 0777, as 0660".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn serve(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        let argv = ["corio", "serve"].iter().chain(args);
        let Command::Serve(args) = Cli::try_parse_from(argv)?.command;
        Ok(*args)
    }

    fn refused(args: &[&str]) -> clap::Error {
        serve(args).expect_err("these arguments are wrong")
    }

    #[test]
    fn the_command_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = serve(&[]).unwrap();
        assert_eq!(args.image, None);
        assert_eq!(args.memory, None);
        assert_eq!(args.connections, 100);
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(args.iothreads, u32::try_from(processors.min(8)).unwrap());
        assert_eq!((args.engine, args.monitor), (Engine::Auto, Monitor::Auto));
        let polls = u64::from(processors > 1);
        assert_eq!(args.poll_max_ns, polls * 50_000);
        assert_eq!(
            (args.cache, args.discard),
            (Cache::Writeback, Discard::Unmap)
        );
        assert_eq!(args.log, LogLevel::Warn);
        assert!(args.listen.is_empty() && args.unix.is_empty());
        assert!(args.name.is_empty() && args.description.is_empty());
        assert!(!args.read_only);
    }

    #[test]
    fn every_option_is_taken() {
        let args = serve(&[
            "disk.raw",
            "--format=raw",
            "--read-only",
            "--name=a/b",
            "--description=text",
            "--listen=localhost:0",
            "--listen=[::1]:10810",
            "--unix=/tmp/a",
            "--unix=/tmp/b",
            "--unix-mode=0660",
            "--connections=7",
            "--iothreads=3",
            "--engine=io_uring",
            "--monitor=epoll",
            "--poll-max-ns=0",
            "--cache=none",
            "--discard=ignore",
            "--log=debug",
            "--pid-file=/tmp/p",
            "--run=true",
            "--tls-cert=/tmp/cert",
            "--tls-key=/tmp/key",
            "--tls-client-ca=/tmp/ca",
            "--tls=allowed",
        ])
        .unwrap();
        assert_eq!(args.tls, Some(TlsMode::Allowed));
        assert_eq!(args.format, Some(Format::Raw));
        assert_eq!(args.listen.len(), 2);
        assert_eq!(args.unix.len(), 2);
        assert_eq!(args.unix_mode, Some(0o660));
        assert_eq!((args.connections, args.iothreads), (7, 3));
        assert_eq!(args.poll_max_ns, 0);
        refused(&["--poll-max-ns=1000000001"]);
        assert_eq!(
            (args.engine, args.monitor),
            (Engine::IoUring, Monitor::Epoll)
        );
        assert_eq!((args.cache, args.discard), (Cache::None, Discard::Ignore));
    }

    #[test]
    fn sizes_are_checked_while_parsing() {
        assert_eq!(
            serve(&["--memory", "512M"]).unwrap().memory,
            Some(512 << 20)
        );
        for bad in ["0", "-1", "1.5G", "99999999999999999999", "lots"] {
            let error = refused(&["--memory", bad]);
            assert_eq!(error.kind(), ErrorKind::ValueValidation, "{bad}");
            assert!(error.to_string().contains("bad size"), "{bad}: {error}");
        }
    }

    #[test]
    fn modes_are_octal_permissions() {
        assert_eq!(octal_mode("0660"), Ok(0o660));
        assert_eq!(octal_mode("600"), Ok(0o600));
        assert_eq!(octal_mode("0o777"), Ok(0o777));
        assert_eq!(octal_mode("0"), Ok(0));
        for bad in ["", "0o", "8", "1777", "-1", "+7", "rw", "77777777777777"] {
            assert!(octal_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_of_counts_and_strings() {
        assert!(serve(&["--connections=0"]).is_err());
        assert!(serve(&["--connections=100001"]).is_err());
        assert!(serve(&["--iothreads=0"]).is_err());
        assert!(serve(&["--iothreads=257"]).is_err());
        assert!(serve(&["--name", &"n".repeat(4096)]).is_ok());
        assert!(serve(&["--name", &"n".repeat(4097)]).is_err());
        assert!(serve(&["--description", &"d".repeat(4097)]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(
            refused(&["a", "--memory=1G"]).kind(),
            ErrorKind::ArgumentConflict
        );
        assert_eq!(
            refused(&["--format=raw"]).kind(),
            ErrorKind::MissingRequiredArgument
        );
        assert_eq!(
            refused(&["--unix-mode=600"]).kind(),
            ErrorKind::MissingRequiredArgument
        );
        for half in [
            &["--tls-cert=c"][..],
            &["--tls-key=k"],
            &["--tls-client-ca=a"],
            &["--tls=required"],
        ] {
            let kind = refused(half).kind();
            assert_eq!(kind, ErrorKind::MissingRequiredArgument, "{half:?}");
        }
        assert_eq!(refused(&["a", "b"]).kind(), ErrorKind::UnknownArgument);
        assert_eq!(
            refused(&["a", "--format=qcow2"]).kind(),
            ErrorKind::InvalidValue
        );
    }

    #[test]
    fn the_manual_names_every_option() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        let long_help = serve.render_long_help().to_string();
        for option in serve.get_opts() {
            let name = option.get_long().expect("every option has a long name");
            assert!(long_help.contains(&format!("--{name}")), "{name}");
            assert!(option.get_help().is_some(), "{name} is not described");
        }
        for section in [
            "Examples:",
            "TLS:",
            "Signals:",
            "Slow and dead clients:",
            "systemd:",
            "Exit status:",
        ] {
            assert!(long_help.contains(section), "{section}");
        }
    }
}

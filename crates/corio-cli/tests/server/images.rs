//! What `corio serve` serves: locks that it shares with QEMU's tools, formats it refuses, devices,
//! full disks, and the one line that each error is.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::data::{self, KIB, MIB, assert_same};
use crate::common::nbd::{self, Client, Headers, cmd, flag};
use crate::common::serve::{Serve, Server, image_dir, program, socket_dir};
use crate::common::tool::{SOON, command, is_root, run};
use crate::common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, skip, wait_until};
use rustix::process::Signal;

matrix!(full_disk_is_an_error_to_the_client_only);
again_through_tls!(full_disk_is_an_error_to_the_client_only);
again_on_linux_aio!(full_disk_is_an_error_to_the_client_only);

/// A fresh image of 1 MiB in a directory of its own.
fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = image_dir();
    let path = dir.path().join("disk.raw");
    data::random_file(&path, MIB, 41);
    (dir, path)
}

fn connect(server: &Server) -> Client {
    Client::connect(&server.first().addr, "", Headers::Structured).unwrap()
}

fn serve(path: &Path) -> Serve {
    Serve::bare().image(path).unix()
}

/// Runs one command of qemu-io on the file itself.
fn qemu_io_on(path: &Path, args: &str, line: &str) -> crate::common::tool::Output {
    run(command(&format!("qemu-io -f raw {args}"))
        .args(["-c", line])
        .arg(path))
}

#[test]
fn image_that_is_served_is_locked_for_qemu() {
    need!(Combo::AUTO, "qemu-io", "qemu-img");
    let (_dir, path) = image();
    qemu_io_on(&path, "", "write -P 1 0 512").ok();
    let server = serve(&path).start();
    let locked = qemu_io_on(&path, "", "write -P 2 0 512").fails();
    assert!(locked.stderr.contains("lock"), "{}", locked.stderr);
    let copy = path.with_file_name("copy");
    let convert = |force: &str| {
        let mut convert = command(&format!("qemu-img convert {force} -f raw -O raw"));
        run(convert.arg(&path).arg(&copy))
    };
    assert!(convert("").fails().stderr.contains("lock"));
    convert("-U").ok();
    assert_eq!(connect(&server).read(0, 1).unwrap(), [1]);
    server.stop();
    qemu_io_on(&path, "", "write -P 3 0 512").ok();
    // A server that is killed leaves no lock behind.
    let mut server = serve(&path).start();
    qemu_io_on(&path, "", "write -P 4 0 512").fails();
    server.kill();
    qemu_io_on(&path, "", "write -P 5 0 512").ok();
}

#[test]
fn image_served_read_only_is_shared_with_readers_only() {
    need!(Combo::AUTO, "qemu-io");
    let (_dir, path) = image();
    let server = serve(&path).arg("--read-only").start();
    qemu_io_on(&path, "-r", "read 0 512").ok();
    qemu_io_on(&path, "", "write -P 2 0 512").fails();
    // With another of ours, too.
    let other = serve(&path).arg("--read-only").start();
    connect(&other).read(0, MIB).unwrap();
    serve(&path).refused(1, &[path.to_str().unwrap(), "lock"]);
    drop((server, other));
    serve(&path).start().stop();
}

#[test]
fn image_that_another_of_ours_serves_is_refused() {
    let (_dir, path) = image();
    let server = serve(&path).start();
    for cache in ["writeback", "none"] {
        serve(&path)
            .args(["--cache", cache])
            .refused(1, &[path.to_str().unwrap(), "lock"]);
    }
    serve(&path)
        .arg("--read-only")
        .refused(1, &[path.to_str().unwrap(), "lock"]);
    // By another name it is the same.
    let link = path.with_file_name("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    serve(&link).refused(1, &[link.to_str().unwrap(), "lock"]);
    connect(&server).write(0, b"unharmed").unwrap();
}

/// A program that holds an image, ended by pid when dropped.
struct Holder(Child);

impl Holder {
    /// An interactive qemu-io that has the image open: it has answered a command.
    fn qemu_io(args: &str, path: &Path) -> Holder {
        let mut qemu_io = command(&format!("qemu-io -f raw {args}"));
        let mut child = qemu_io
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"read 0 512\n")
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let holder = Holder(child);
        let opened = stdout
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("read 512/512"));
        assert!(opened, "qemu-io could not open {}", path.display());
        holder
    }

    /// A qemu-nbd that has the image open: it listens.
    fn qemu_nbd(args: &str, path: &Path, socket: &Path) -> Holder {
        let mut qemu_nbd = command(&format!("qemu-nbd -f raw -t {args} -k"));
        let child = qemu_nbd.arg(socket).arg(path).spawn().unwrap();
        let holder = Holder(child);
        wait_until("qemu-nbd listens", SOON, || {
            std::os::unix::net::UnixStream::connect(socket).is_ok()
        });
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn image_that_qemu_holds_is_refused() {
    need!(Combo::AUTO, "qemu-io", "qemu-nbd");
    let (_dir, path) = image();
    let sockets = socket_dir();
    let text = path.to_str().unwrap();
    let holders: [&dyn Fn(&str) -> Holder; 2] = [&|args| Holder::qemu_io(args, &path), &|args| {
        Holder::qemu_nbd(args, &path, &sockets.path().join("qemu.sock"))
    }];
    for hold in holders {
        let writer = hold("");
        serve(&path).refused(1, &[text, "lock"]);
        serve(&path).arg("--read-only").refused(1, &[text, "lock"]);
        drop(writer);
        // QEMU's readers let others write; ours asks for no more than they do.
        let reader = hold("-r");
        serve(&path).arg("--read-only").start().stop();
        drop(reader);
        serve(&path).start().stop();
    }
}

#[test]
fn images_that_cannot_be_opened_are_one_line() {
    let (dir, path) = image();
    let none = dir.path().join("none.raw");
    serve(&none).refused(1, &[none.to_str().unwrap(), "No such file"]);
    let below = path.join("file");
    serve(&below).refused(1, &[below.to_str().unwrap()]);
    serve(dir.path()).refused(1, &[dir.path().to_str().unwrap(), "directory"]);
    let long = dir.path().join("n".repeat(300));
    serve(&long).refused(1, &["File name too long"]);
    serve(Path::new("/dev/null")).refused(1, &["/dev/null"]);
    // A path that would draw on the terminal, or take a second line.
    serve(&dir.path().join("a\nb\x1b[2J")).refused(1, &["a\\nb"]);
}

#[test]
fn image_without_permission_is_refused() {
    need!(Combo::AUTO, "setpriv");
    if !is_root() {
        skip!("only root can become somebody else");
    }
    // Where anybody may look, with the program beside it: the target directory may be closed.
    let dir = socket_dir();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [path, corio] = ["disk.raw", "corio"].map(|name| dir.path().join(name));
    data::random_file(&path, MIB, 42);
    std::fs::copy(program(), &corio).unwrap();
    let serve_as_nobody = |mode| {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        Serve::bare()
            .through(&[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ])
            .program(&corio)
            .image(&path)
            .tcp()
    };
    let text = path.to_str().unwrap();
    serve_as_nobody(0o600).refused(1, &[text, "permission"]);
    serve_as_nobody(0o600)
        .arg("--read-only")
        .refused(1, &[text, "permission"]);
    // What can be done about a file that may be read is said.
    serve_as_nobody(0o644).refused(1, &[text, "permission", "read-only"]);
    let server = serve_as_nobody(0o644).arg("--read-only").start();
    connect(&server).read(0, MIB).unwrap();
    server.stop();
    // A socket where one may not make any.
    serve_as_nobody(0o666)
        .args(["--unix", "/usr/s"])
        .refused(1, &["/usr/s", "Permission denied"]);
}

// SPEC E2: through the page cache it would block the loop, and threads were not asked for.
#[test]
fn linux_aio_without_o_direct_is_refused() {
    let (_dir, path) = image();
    let aio = |serve: Serve| serve.args(["--engine", "linux-aio"]);
    aio(serve(&path)).refused(1, &[path.to_str().unwrap(), "--cache none"]);
    aio(Serve::bare().unix()).refused(1, &["memory disk", "--engine io_uring"]);
    aio(serve(&path)).args(["--cache", "none"]).start().stop();
}

#[test]
fn wrong_command_lines_are_one_line_and_exit_2() {
    let refused = |args: &[&str], words: &[&str]| Serve::bare().args(args).refused(2, words);
    for bad in [
        "0",
        "-1",
        "1.5",
        "12Q",
        "banana",
        "",
        "99999999999999999999",
        "16E",
    ] {
        refused(&["--memory", bad], &["--memory"]);
    }
    refused(&["--nonsense"], &["--nonsense"]);
    refused(&["a.raw", "b.raw"], &["b.raw"]);
    refused(&["a.raw", "--memory", "1M"], &["--memory"]);
    refused(&["a.raw", "--format", "vmdk"], &["vmdk", "raw"]);
    let engines = ["steam", "io_uring", "linux-aio", "threads"];
    refused(&["--engine", "steam"], &engines);
    refused(&["--monitor", "lizard"], &["lizard", "epoll"]);
    refused(&["--cache", "maybe"], &["maybe"]);
    refused(&["--discard", "sometimes"], &["sometimes"]);
    refused(&["--connections", "0"], &["--connections"]);
    refused(&["--iothreads", "0"], &["--iothreads"]);
    refused(&["--log", "loud"], &["loud"]);
    refused(&["--name", &"n".repeat(5000)], &["--name"]);
    // Help and version are no errors.
    let help = run(Command::new(program()).args(["serve", "--help"])).ok();
    for option in [
        "--listen",
        "--unix",
        "--read-only",
        "--memory",
        "--cache",
        "Exit status",
    ] {
        assert!(
            help.stdout.contains(option),
            "no {option} in:\n{}",
            help.stdout
        );
    }
    assert!(
        run(Command::new(program()).arg("--version"))
            .ok()
            .stdout
            .starts_with("corio ")
    );
}

#[test]
fn other_formats_are_refused_unless_raw_is_asked_for() {
    need!(Combo::AUTO, "qemu-img");
    let dir = image_dir();
    for format in ["qcow2", "vmdk", "vdi", "vhdx"] {
        let path = dir.path().join(format);
        run(command(&format!("qemu-img create -q -f {format}"))
            .arg(&path)
            .arg("4M"))
        .ok();
        let text = path.to_str().unwrap();
        let guessing = || Serve::bare().arg(&path).unix();
        guessing().refused(1, &[text, format, "--format raw"]);
        guessing()
            .arg("--read-only")
            .refused(1, &[text, format, "--format raw"]);
        let bytes = std::fs::read(&path).unwrap();
        let server = serve(&path).start();
        let size = u64::try_from(bytes.len()).unwrap();
        assert_same(format, &connect(&server).read(0, size).unwrap(), &bytes);
    }
    // What looks like nothing known is raw.
    let path = dir.path().join("raw");
    data::random_file(&path, MIB, 43);
    Serve::bare().arg(&path).unix().start().stop();
}

/// A file system of `size` at `dir`, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// None if this test may not mount.
    fn mount(dir: &Path, size: &str) -> Option<Tmpfs> {
        let mut mount = command(&format!("mount -t tmpfs -o size={size} corio-test"));
        (is_root() && run(mount.arg(dir)).status.success()).then(|| Tmpfs(dir.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a failed test may still have a server on it.
        let _ = command("umount -l").arg(&self.0).status();
    }
}

fn full_disk_is_an_error_to_the_client_only(combo: Combo) {
    need!(combo, "mount", "umount");
    let dir = socket_dir();
    let Some(_tmpfs) = Tmpfs::mount(dir.path(), "2m") else {
        skip!("may not mount a tmpfs")
    };
    let path = dir.path().join("disk.raw");
    data::sparse_file(&path, 16 * MIB);
    let server = Serve::new(combo).image(&path).unix().start();
    let mut client = connect(&server);
    let block = data::Random::new(44).bytes(64 << 10);
    let mut written = 0;
    let error = loop {
        assert!(written < 16 * MIB, "16 MiB fit on 2 MiB");
        let reply = client
            .call(cmd::WRITE, 0, written, 64 * KIB, &block)
            .unwrap();
        if reply.error != 0 {
            break reply.error;
        }
        written += 64 * KIB;
    };
    assert_eq!(error, nbd::ENOSPC, "after {written} bytes");
    assert!(written >= MIB, "{written} bytes fit on 2 MiB");
    // What was written is there, the connection goes on, and room that is given back is used.
    for at in (0..written).step_by(64 << 10) {
        assert_same(
            "written before",
            &client.read(at, 64 * KIB).unwrap(),
            &block,
        );
    }
    client
        .call(cmd::TRIM, 0, 0, 512 * KIB, &[])
        .unwrap()
        .good()
        .unwrap();
    client.write(written, &block).unwrap();
    assert_same(
        "written after",
        &client.read(written, 64 * KIB).unwrap(),
        &block,
    );
    drop(client);
    server.stop();
}

#[test]
fn image_on_a_read_only_file_system_is_refused() {
    need!(Combo::AUTO, "mount", "umount");
    let dir = socket_dir();
    let Some(_tmpfs) = Tmpfs::mount(dir.path(), "2m") else {
        skip!("may not mount a tmpfs")
    };
    let path = dir.path().join("disk.raw");
    data::random_file(&path, MIB, 45);
    run(command("mount -o remount,ro").arg(dir.path())).ok();
    serve(&path).refused(1, &[path.to_str().unwrap(), "read-only"]);
    serve(&path).arg("--read-only").start().stop();
}

/// A block device over a file, detached when dropped.
struct Loop(String);

impl Loop {
    /// None if this test may not make one.
    fn attach(file: &Path, sector: u32) -> Option<Loop> {
        let mut losetup = command(&format!("losetup --find --show --sector-size {sector}"));
        let output = is_root().then(|| run(losetup.arg(file)))?;
        output
            .status
            .success()
            .then(|| Loop(output.stdout.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command("losetup --detach").arg(&self.0).status();
    }
}

#[test]
fn block_device_is_served_to_one_server_only() {
    need!(Combo::AUTO, "losetup", "nbdinfo");
    let (_dir, path) = image();
    let mut bytes = std::fs::read(&path).unwrap();
    for (sector, cache) in [(4096, "none"), (512, "none"), (512, "writeback")] {
        let Some(device) = Loop::attach(&path, sector) else {
            skip!("may not attach a loop device")
        };
        let what = format!("{} of {sector}, cache {cache}", device.0);
        let served = || serve(Path::new(&device.0)).args(["--cache", cache]);
        let server = served().start();
        served().refused(1, &[&device.0]);
        served()
            .arg("--read-only")
            .refused(1, &[&device.0, "fuser"]);
        let mut client = connect(&server);
        assert_eq!(client.export.size, MIB, "{what}");
        let (smallest, preferred, _) = client.export.block_sizes.unwrap();
        let expected = if cache == "none" { sector } else { 1 };
        assert_eq!(smallest, expected, "{what}");
        assert!(preferred >= sector, "{what}");
        assert_same(&what, &client.read(0, MIB).unwrap(), &bytes);
        // Unaligned all the same.
        client.write(4095, &[7; 4099]).unwrap();
        bytes[4095..8194].fill(7);
        client
            .call(cmd::WRITE_ZEROES, 0, 100_001, 50_001, &[])
            .unwrap()
            .good()
            .unwrap();
        bytes[100_001..150_002].fill(0);
        client
            .call(cmd::TRIM, 0, 512 * KIB, 64 * KIB, &[])
            .unwrap()
            .good()
            .unwrap();
        bytes[512 << 10..576 << 10].fill(0);
        client.flush().unwrap();
        assert_same(&what, &client.read(0, MIB).unwrap(), &bytes);
        server.stop();
        // A reader is alone with the device too, as whoever has it open may write it.
        let reader = served().arg("--read-only").start();
        served().refused(1, &[&device.0, "fuser"]);
        served()
            .arg("--read-only")
            .refused(1, &[&device.0, "fuser"]);
        let mut client = connect(&reader);
        assert!(client.export.has(flag::READ_ONLY), "{what}");
        assert_same(&what, &client.read(0, MIB).unwrap(), &bytes);
        reader.stop();
        served().start().stop();
    }
}

/// Files of /proc can be opened for writing and cannot be synced.
#[test]
fn failed_final_flush_is_one_line_that_says_what_to_do() {
    const PATH: &str = "/proc/self/comm";
    let mut server = serve(Path::new(PATH)).start();
    server.signal(Signal::TERM);
    assert_eq!(server.wait(SOON).code(), Some(1));
    assert_eq!(
        server.stderr(),
        format!(
            "corio: {PATH}: flush failed: Invalid argument, what was written before it may be \
             lost; check the storage below (see the kernel log) and the data\n"
        )
    );
}

#[test]
fn discard_ignore_gives_no_space_back() {
    let (_dir, path) = image();
    let bytes = std::fs::read(&path).unwrap();
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    let before = blocks();
    let server = serve(&path).args(["--discard", "ignore"]).start();
    let mut client = connect(&server);
    assert!(!client.export.has(flag::SEND_TRIM));
    // Asked all the same, it may refuse or do nothing.
    client.call(cmd::TRIM, 0, 0, MIB, &[]).unwrap();
    assert_same("after a trim", &client.read(0, MIB).unwrap(), &bytes);
    client
        .call(cmd::WRITE_ZEROES, 0, 0, MIB, &[])
        .unwrap()
        .good()
        .unwrap();
    assert!(client.read(0, MIB).unwrap().iter().all(|&b| b == 0));
    server.stop();
    assert!(
        blocks() >= before,
        "{before} blocks before, {} after",
        blocks()
    );
}

#[test]
fn memory_disk_is_sparse_and_forgets() {
    need!(Combo::AUTO, "nbdinfo", "qemu-io");
    let memory = || Serve::bare().memory("1T").unix();
    let server = memory().start();
    let end = 1 << 40;
    let mut client = connect(&server);
    assert_eq!(client.export.size, end);
    assert!(client.read(end - MIB, MIB).unwrap().iter().all(|&b| b == 0));
    client.write(end - 5, b"world").unwrap();
    client.write(0, b"hello").unwrap();
    let map = run(command("nbdinfo --map --totals").arg(&server.first().uri))
        .ok()
        .stdout;
    let data = map
        .lines()
        .find(|line| line.trim_end().ends_with("data"))
        .unwrap();
    let data: u64 = data.split_whitespace().next().unwrap().parse().unwrap();
    assert!((8 * KIB..=4 * MIB).contains(&data), "{map}");
    // What is discarded is given back, and reads as zeroes.
    let before = held_kib(&server);
    let block = data::Random::new(46).bytes(16 << 20);
    for i in 0..8 {
        client.write(i * 16 * MIB, &block).unwrap();
    }
    let full = held_kib(&server);
    assert!(
        full > before + (120 << 10),
        "{before} -> {full} KiB: where are 128 MiB?"
    );
    client
        .call(cmd::TRIM, 0, 0, 128 * MIB, &[])
        .unwrap()
        .good()
        .unwrap();
    let trimmed = held_kib(&server);
    assert!(trimmed + (64 << 10) < full, "{full} -> {trimmed} KiB");
    assert!(client.read(0, 32 * MIB).unwrap().iter().all(|&b| b == 0));
    assert_eq!(client.read(end - 5, 5).unwrap(), b"world");
    drop(client);
    server.stop();
    let server = memory().start();
    assert_eq!(connect(&server).read(end - 5, 5).unwrap(), [0; 5]);
}

/// The memory a server holds: its own, and what it has in files without a name.
fn held_kib(server: &Server) -> u64 {
    let dir = format!("/proc/{}/fd", server.pid().as_raw_nonzero());
    let unnamed = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|descriptor| {
            let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
            target.to_string_lossy().starts_with("/memfd:")
        });
    let blocks = unnamed.filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok());
    let blocks: u64 = blocks
        .map(|file| std::os::unix::fs::MetadataExt::blocks(&file))
        .sum();
    server.proc_kib("smaps_rollup", "Rss") + blocks / 2
}

#[test]
fn good_session_writes_nothing_to_stderr() {
    need!(Combo::AUTO, "nbdinfo", "qemu-io");
    let (_dir, path) = image();
    let mut server = serve(&path).start();
    run(command("nbdinfo").arg(&server.first().uri)).ok();
    run(command("qemu-io -f raw -c")
        .arg("write -P 1 0 4k")
        .arg(&server.first().uri))
    .ok();
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait(SOON).success());
    assert_eq!(server.stderr(), "");
    // Asked to talk, it does.
    let mut server = serve(&path).args(["--log", "info"]).start();
    run(command("nbdinfo").arg(&server.first().uri)).ok();
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait(SOON).success());
    assert!(server.stderr().lines().count() >= 2, "{}", server.stderr());
}

//! Probing real images, made by qemu-img.

mod common;

use common::{directory, has, run, skipped};
use corio_block::{probe, raw};

#[test]
fn images_made_by_qemu_img_are_recognised() {
    if !has("qemu-img") {
        return skipped("probing real images", "qemu-utils is not installed");
    }
    let directory = directory();
    let images: [(&str, &[&str]); 14] = [
        ("qcow2", &[]),
        ("qcow2", &["-o", "compat=0.10"]),
        ("qcow", &[]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=monolithicFlat"]),
        ("vdi", &[]),
        ("vhdx", &[]),
        ("vpc", &[]),
        ("vpc", &["-o", "subformat=fixed"]),
        ("vpc", &["-o", "subformat=fixed,force_size=on"]),
        ("qed", &[]),
        ("parallels", &[]),
        (
            "luks",
            &[
                "--object",
                "secret,id=key,data=x",
                "-o",
                "key-secret=key,iter-time=10",
            ],
        ),
        ("raw", &[]),
    ];
    let mut recognised = 0;
    for (i, (format, options)) in images.iter().enumerate() {
        let path = directory.path().join(format!("{i}.image"));
        let mut args = vec!["create", "-q", "-f", format];
        args.extend(*options);
        args.extend([path.to_str().unwrap(), "16M"]);
        if let Err(why) = run("qemu-img", &args) {
            skipped(&format!("probing {format} {options:?}"), why);
            continue;
        }
        let node = raw::Options::new(&path).read_only(true).open().unwrap();
        let found = probe::detect(&node)
            .unwrap()
            .map_or("raw", probe::Format::name);
        assert_eq!(found, *format, "{options:?}");
        recognised += 1;
    }
    assert!(recognised >= 8, "only {recognised} formats could be made");
}

// Smaller than a header, and of every small size.
#[test]
fn tiny_disks_are_probed_without_reading_past_their_end() {
    let directory = directory();
    let path = directory.path().join("tiny");
    for size in [0, 1, 3, 511, 512, 513] {
        std::fs::write(&path, vec![0x51; size]).unwrap();
        let node = raw::Options::new(&path).read_only(true).open().unwrap();
        assert_eq!(probe::detect(&node).unwrap(), None, "{size} bytes");
    }
}

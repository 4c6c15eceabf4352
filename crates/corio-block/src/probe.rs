//! Formats recognised by their magic bytes, so that an image of another format is not served as
//! raw by accident.
//!
//! Only for asking the user. To choose a driver by what a raw disk holds would let whoever writes
//! the disk choose it: a guest could write a qcow2 header that names any file of the host.

use std::fmt;

use crate::{
    Error, Node, Offset,
    units::{buffer_len, bytes},
};

/// Bytes read from the start of a disk.
const HEAD: usize = 512;
/// Bytes read from the end; VHD footers are 512 bytes, in old images 511, DMG trailers 512.
const TRAILER: usize = 512;

/// A disk image format other than raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Bochs growing images.
    Bochs,
    /// Compressed loop images.
    Cloop,
    /// Apple disk images.
    Dmg,
    /// LUKS, version 1 or 2.
    Luks,
    /// Parallels hdd.
    Parallels,
    /// qcow, version 1.
    Qcow,
    /// qcow2, version 2 or 3.
    Qcow2,
    /// QED.
    Qed,
    /// VirtualBox disk images.
    Vdi,
    /// Hyper-V virtual disks, version 2.
    Vhdx,
    /// VMware disks: sparse, ESX sparse, or a descriptor file.
    Vmdk,
    /// Virtual PC's VHD.
    Vpc,
}

impl Format {
    /// Its name, as QEMU's tools spell it.
    ///
    /// ```
    /// assert_eq!(corio_block::probe::Format::Qcow2.name(), "qcow2");
    /// ```
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Bochs => "bochs",
            Format::Cloop => "cloop",
            Format::Dmg => "dmg",
            Format::Luks => "luks",
            Format::Parallels => "parallels",
            Format::Qcow => "qcow",
            Format::Qcow2 => "qcow2",
            Format::Qed => "qed",
            Format::Vdi => "vdi",
            Format::Vhdx => "vhdx",
            Format::Vmdk => "vmdk",
            Format::Vpc => "vpc",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads the start and the end of a disk and says which other format they look like; `None`: none
/// that is known. May park the calling coroutine.
///
/// # Errors
///
/// The storage's.
///
/// ```
/// use corio_block::{Length, Offset, WriteFlags, memory, probe};
///
/// let disk = memory::Options::new(Length(1 << 20)).open()?;
/// assert_eq!(probe::detect(&disk)?, None);
/// disk.write_at(b"QFI\xfb\0\0\0\x03", Offset::ZERO, WriteFlags::empty())?;
/// assert_eq!(probe::detect(&disk)?, Some(probe::Format::Qcow2));
/// # Ok::<(), corio_block::Error>(())
/// ```
pub fn detect(node: &Node) -> Result<Option<Format>, Error> {
    let (mut head, mut trailer) = ([0; HEAD], [0; TRAILER]);
    let head = &mut head[..buffer_len(node.size()).min(HEAD)];
    let trailer = &mut trailer[..buffer_len(node.size()).min(TRAILER)];
    node.read_at(head, Offset::ZERO)?;
    node.read_at(trailer, Offset(node.size() - bytes(trailer.len())))?;
    Ok(format_of(head, trailer))
}

/// Which format a disk looks like by its first and its last 512 bytes (fewer if it is smaller).
///
/// ```
/// use corio_block::probe::{Format, format_of};
///
/// assert_eq!(format_of(b"vhdxfile", b""), Some(Format::Vhdx));
/// assert_eq!(format_of(b"\xeb\x63\x90", b"\x55\xaa"), None);
/// ```
#[must_use]
pub fn format_of(head: &[u8], trailer: &[u8]) -> Option<Format> {
    if let Some(version) = head.strip_prefix(b"QFI\xfb") {
        return Some(match version {
            [0, 0, 0, 1, ..] => Format::Qcow,
            _ => Format::Qcow2,
        });
    }
    const AT_START: [(&[u8], Format); 12] = [
        (b"KDMV", Format::Vmdk),
        (b"COWD", Format::Vmdk),
        (b"# Disk DescriptorFile", Format::Vmdk),
        (b"vhdxfile", Format::Vhdx),
        (b"conectix", Format::Vpc),
        (b"LUKS\xba\xbe", Format::Luks),
        (b"QED\0", Format::Qed),
        (b"WithoutFreeSpace", Format::Parallels),
        (b"WithouFreSpacExt", Format::Parallels),
        (b"Bochs Virtual HD Image", Format::Bochs),
        (b"#!/bin/sh\n#V2.0 Format\n", Format::Cloop),
        (b"koly", Format::Dmg),
    ];
    if let Some((_, format)) = AT_START
        .into_iter()
        .find(|(magic, _)| head.starts_with(magic))
    {
        return Some(format);
    }
    // The text before VDI's signature is the creating program's to choose.
    const VDI_SIGNATURE_AT: usize = 64;
    const VDI_SIGNATURE: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();
    if head
        .get(VDI_SIGNATURE_AT..)
        .is_some_and(|at| at.starts_with(&VDI_SIGNATURE))
    {
        return Some(Format::Vdi);
    }
    let footer_511 = trailer
        .get(trailer.len().saturating_sub(511)..)
        .unwrap_or_default();
    if trailer.starts_with(b"conectix") || footer_511.starts_with(b"conectix") {
        return Some(Format::Vpc);
    }
    trailer.starts_with(b"koly").then_some(Format::Dmg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn each_magic_at_its_place_is_recognised() {
        for (at, magic, format) in [
            (0, &b"QFI\xfb\0\0\0\x01"[..], Format::Qcow),
            (0, b"QFI\xfb\0\0\0\x02", Format::Qcow2),
            (0, b"QFI\xfb\0\0\0\x03", Format::Qcow2),
            (0, b"KDMV", Format::Vmdk),
            (0, b"COWD", Format::Vmdk),
            (0, b"# Disk DescriptorFile\nversion=1\n", Format::Vmdk),
            (64, b"\x7f\x10\xda\xbe", Format::Vdi),
            (0, b"vhdxfile", Format::Vhdx),
            (0, b"conectix", Format::Vpc),
            (0, b"LUKS\xba\xbe\0\x01", Format::Luks),
            (0, b"LUKS\xba\xbe\0\x02", Format::Luks),
            (0, b"QED\0", Format::Qed),
            (0, b"WithoutFreeSpace", Format::Parallels),
            (0, b"WithouFreSpacExt", Format::Parallels),
            (0, b"Bochs Virtual HD Image", Format::Bochs),
            (0, b"#!/bin/sh\n#V2.0 Format\n", Format::Cloop),
            (0, b"koly", Format::Dmg),
        ] {
            assert_eq!(
                format_of(&head_with(at, magic), &[0; TRAILER]),
                Some(format),
                "{magic:?}"
            );
            assert_eq!(
                format_of(&head_with(at + 1, magic), &[0; TRAILER]),
                None,
                "{magic:?}"
            );
        }
    }

    #[test]
    fn trailers_are_recognised_where_the_formats_put_them() {
        let raw = [0; HEAD];
        assert_eq!(
            format_of(&raw, &head_with(0, b"conectix")),
            Some(Format::Vpc)
        );
        assert_eq!(
            format_of(&raw, &head_with(1, b"conectix")),
            Some(Format::Vpc)
        );
        assert_eq!(format_of(&raw, &head_with(2, b"conectix")), None);
        assert_eq!(format_of(&raw, &head_with(0, b"koly")), Some(Format::Dmg));
        assert_eq!(format_of(&raw, &head_with(1, b"koly")), None);
    }

    #[test]
    fn tiny_and_ordinary_disks_are_raw() {
        assert_eq!(format_of(b"", b""), None);
        assert_eq!(format_of(b"Q", b"Q"), None);
        assert_eq!(format_of(b"QFI", b"QFI"), None);
        let mut boot_sector = head_with(0, b"\xeb\x63\x90");
        boot_sector[510..].copy_from_slice(b"\x55\xaa");
        assert_eq!(format_of(&boot_sector, &boot_sector), None);
    }
}

//! The disk: the image or the memory, and the export under which clients see it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use corio_block::{Length, Node, memory, probe, raw};
use corio_nbd::server::{Export, Server, ServerConfig};

use crate::args::{Cache, Discard, MEMORY_DEFAULT, ServeArgs};
use crate::report::Failure;

/// Opens the image, or makes the memory disk.
///
/// # Errors
/// The image cannot be opened or locked, or its content looks like another format than raw and
/// nobody has said that it is raw.
pub(crate) fn open(args: &ServeArgs) -> Result<Arc<Node>> {
    let Some(path) = &args.image else {
        let size = Length(args.memory.unwrap_or(MEMORY_DEFAULT));
        return Ok(memory::Options::new(size)
            .read_only(args.read_only)
            .open()?);
    };
    let node = raw::Options::new(path)
        .read_only(args.read_only)
        .cache(args.cache.into())
        .discard(args.discard.into())
        .open()?;
    if args.format.is_none() {
        refuse_other_formats(path, &node)?;
    }
    Ok(node)
}

/// A raw disk whose first bytes look like qcow2 would be served as the file it is, and not as the
/// disk it describes, which is hardly ever what is meant.
fn refuse_other_formats(path: &Path, node: &Node) -> Result<()> {
    let Some(format) = probe::detect(node)? else {
        return Ok(());
    };
    let path = path.display();
    let format = format.name();
    Err(Failure::new(path.to_string())
        .why(format!(
            "looks like a {format} image, and corio serves raw ones"
        ))
        .advice(
            "convert it (qemu-img convert -O raw), or serve its bytes as they are with --format raw",
        )
        .into())
}

/// The server for one export of `node`.
pub(crate) fn export(args: &ServeArgs, node: Arc<Node>) -> Server {
    let export = Export {
        name: args.name.clone(),
        description: args.description.clone(),
        read_only: args.read_only,
        node,
    };
    Server::new(ServerConfig::default(), vec![export])
}

impl From<Cache> for raw::Cache {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Writeback => Self::Writeback,
            Cache::None => Self::None,
        }
    }
}

impl From<Discard> for raw::Discard {
    fn from(discard: Discard) -> Self {
        match discard {
            Discard::Unmap => Self::Unmap,
            Discard::Ignore => Self::Ignore,
        }
    }
}

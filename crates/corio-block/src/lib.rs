//! corio-block.

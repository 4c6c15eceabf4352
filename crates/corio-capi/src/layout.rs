//! The sizes that the header publishes of what C allocates (C3): words that it does not look into. Where
//! it shows members, their offsets are asserted at the type. `tests/c` asserts the same of the header.

/// Asserts that a type has the size and the alignment of as many words of 64 bits.
macro_rules! words {
    ($type:ty, $words:expr) => {
        const _: () = assert!(
            size_of::<$type>() == 8 * $words && align_of::<$type>() == 8,
            "the header says otherwise"
        );
    };
}

pub(crate) use words;

//! One place that turns "field at byte offset" into encode and decode.
//!
//! NVMe data structures are long tables of little-endian fields with reserved gaps.
//! [`wire_struct!`] lets a structure be written as that table: each field stands beside its byte
//! offset exactly once, and the compiler proves that the fields ascend, do not overlap and fit.

use byteorder::{ByteOrder, LittleEndian};

/// A value with a fixed size on the wire.
pub(crate) trait Field {
    /// Size in bytes.
    const SIZE: usize;
    /// Writes the value; `out` is exactly [`Self::SIZE`] bytes.
    fn put(&self, out: &mut [u8]);
    /// Reads the value; `bytes` is exactly [`Self::SIZE`] bytes. Every bit pattern is a value.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! integer_field {
    ($($ty:ty, $put:ident, $get:ident;)*) => {$(
        impl Field for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn put(&self, out: &mut [u8]) {
                LittleEndian::$put(out, *self);
            }
            fn get(bytes: &[u8]) -> Self {
                LittleEndian::$get(bytes)
            }
        }
    )*};
}

integer_field! {
    u16, write_u16, read_u16;
    u32, write_u32, read_u32;
    u64, write_u64, read_u64;
    u128, write_u128, read_u128;
}

impl Field for u8 {
    const SIZE: usize = 1;
    fn put(&self, out: &mut [u8]) {
        out.fill(*self);
    }
    fn get(bytes: &[u8]) -> Self {
        bytes.first().copied().unwrap_or_default()
    }
}

impl<T: Field + Copy, const N: usize> Field for [T; N] {
    const SIZE: usize = N * T::SIZE;
    fn put(&self, out: &mut [u8]) {
        for (item, chunk) in self.iter().zip(out.chunks_exact_mut(T::SIZE)) {
            item.put(chunk);
        }
    }
    fn get(bytes: &[u8]) -> Self {
        let mut chunks = bytes.chunks_exact(T::SIZE);
        std::array::from_fn(|_| T::get(chunks.next().unwrap_or_default()))
    }
}

/// Proves at compile time that `fields` (offset, size) ascend, do not overlap and end within `size`
/// bytes.
pub(crate) const fn check(size: usize, fields: &[(usize, usize)]) {
    let mut rest = fields;
    let mut end = 0;
    while let [(offset, length), tail @ ..] = rest {
        assert!(*offset >= end, "fields overlap or are out of order");
        end = *offset + *length;
        rest = tail;
    }
    assert!(end <= size, "fields exceed the structure");
}

/// Makes newtypes over integers and `bitflags` types usable as fields.
macro_rules! newtype_fields {
    ($($ty:ident($bits:ty): $from:expr, $to:expr;)*) => {$(
        impl $crate::wire::layout::Field for $ty {
            const SIZE: usize = size_of::<$bits>();
            fn put(&self, out: &mut [u8]) {
                let to: fn(&Self) -> $bits = $to;
                $crate::wire::layout::Field::put(&to(self), out);
            }
            fn get(bytes: &[u8]) -> Self {
                let from: fn($bits) -> Self = $from;
                from(<$bits as $crate::wire::layout::Field>::get(bytes))
            }
        }
    )*};
}
pub(crate) use newtype_fields;

/// Makes `bitflags` types usable as fields; bits without a name survive.
macro_rules! flag_fields {
    ($($ty:ident($bits:ty)),* $(,)?) => {
        $crate::wire::layout::newtype_fields! {
            $($ty($bits): Self::from_bits_retain, Self::bits;)*
        }
    };
}
pub(crate) use flag_fields;

/// Declares a structure of `$size` bytes as a table of `offset => field: type`.
///
/// Generates the struct, `SIZE`, `encode` (all bytes: what no field covers is zero), `decode`, and
/// `Default` (all zero).
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident [$size:literal] {
            $( $(#[$field_meta:meta])* $offset:literal => $field:ident: $ty:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[doc = concat!("\n\nByte offset ", $offset, ".")]
                pub $field: $ty,
            )*
        }

        impl $name {
            #[doc = concat!("Size on the wire: ", $size, " bytes.")]
            pub const SIZE: usize = $size;

            const _LAYOUT: () = $crate::wire::layout::check(
                $size,
                &[$(($offset, <$ty as $crate::wire::layout::Field>::SIZE)),*],
            );

            /// Writes the structure; every byte of `out` is set, reserved ones to zero.
            pub fn encode(&self, out: &mut [u8; $size]) {
                let () = Self::_LAYOUT;
                out.fill(0);
                $(
                    $crate::wire::layout::Field::put(
                        &self.$field,
                        &mut out[$offset..$offset + <$ty as $crate::wire::layout::Field>::SIZE],
                    );
                )*
            }

            /// Reads the structure. Every input is accepted: values are judged by the caller,
            /// reserved bytes ignored.
            pub fn decode(bytes: &[u8; $size]) -> Self {
                let () = Self::_LAYOUT;
                Self {
                    $(
                        $field: <$ty as $crate::wire::layout::Field>::get(
                            &bytes[$offset..$offset + <$ty as $crate::wire::layout::Field>::SIZE],
                        ),
                    )*
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::decode(&[0; $size])
            }
        }
    };
}
pub(crate) use wire_struct;

/// Space-padded ASCII as serial, model and firmware fields want it: what does not fit is cut, and
/// every character that is not printable ASCII (20h..=7Eh) becomes `?`.
pub fn padded_ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (byte, c) in out.iter_mut().zip(text.chars()) {
        let printable = u8::try_from(c).ok().filter(|b| (0x20..=0x7e).contains(b));
        *byte = printable.unwrap_or(b'?');
    }
    out
}

/// The text of a fixed field that may be NUL-terminated or space-padded: everything before the
/// first NUL, without trailing spaces. Bytes that are not UTF-8 are replaced; escape the result
/// before logging it (see [`crate::wire::nqn::Escaped`]).
pub fn trimmed_text(field: &[u8]) -> String {
    let text = field.split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .trim_end_matches(' ')
        .to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Asserts for each line that setting this one field, and nothing else, changes exactly these
    /// bytes and survives a round trip.
    macro_rules! assert_offsets {
        ($ty:ident { $($field:ident: $value:expr => $range:expr;)* }) => {{
            $(
                let mut value = $ty::decode(&[0; $ty::SIZE]);
                value.$field = $value;
                let mut out = [0xa5; $ty::SIZE];
                value.encode(&mut out);
                let range: std::ops::Range<usize> = $range;
                for (i, byte) in out.iter().enumerate() {
                    if !range.contains(&i) {
                        assert_eq!(*byte, 0, "{}.{} wrote byte {i}", stringify!($ty), stringify!($field));
                    }
                }
                for edge in [range.start, range.end - 1] {
                    assert_ne!(out[edge], 0, "{}.{} left byte {edge}", stringify!($ty), stringify!($field));
                }
                assert_eq!($ty::decode(&out), value, "{}.{}", stringify!($ty), stringify!($field));
            )*
            // Any bytes decode; encoding what was decoded is stable.
            let noise: [u8; $ty::SIZE] = std::array::from_fn(|i| u8::try_from(i * 131 % 255).unwrap_or(7));
            let decoded = $ty::decode(&noise);
            let mut out = [0; $ty::SIZE];
            decoded.encode(&mut out);
            assert_eq!($ty::decode(&out), decoded);
        }};
    }
    pub(crate) use assert_offsets;

    #[test]
    fn ascii_is_padded_cut_and_cleaned() {
        assert_eq!(&padded_ascii::<8>("1.0"), b"1.0     ");
        assert_eq!(&padded_ascii::<4>("abcdef"), b"abcd");
        assert_eq!(&padded_ascii::<6>("a\nb\u{e9}\0"), b"a?b?? ");
    }

    #[test]
    fn text_ends_at_nul_and_loses_padding() {
        assert_eq!(trimmed_text(b"disk 1   "), "disk 1");
        assert_eq!(trimmed_text(b"4420\0junk"), "4420");
        assert_eq!(trimmed_text(b"\0"), "");
        assert_eq!(trimmed_text(b"\xffa"), "\u{fffd}a");
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_fields_are_found() {
        check(8, &[(0, 4), (2, 2)]);
    }

    #[test]
    #[should_panic(expected = "exceed")]
    fn fields_past_the_end_are_found() {
        check(8, &[(0, 4), (6, 4)]);
    }
}

//! What the simulation writes: every 512 bytes say which write they are from and where it put them.

/// The unit of the model: what a torn write is torn at.
pub const SECTOR: usize = 512;

/// The content of a sector: 0 stands for zeroes, all others for a write and a place.
pub type Tag = u64;

/// Not a content, but the mark that Write Uncorrectable leaves: no read returns it.
pub const BAD: Tag = Tag::MAX;

/// What write number `write` puts at `sector`.
pub const fn tag(write: u32, sector: u64) -> Tag {
    (write as u64) << 32 | (sector + 1)
}

const fn word(tag: Tag, index: usize) -> u64 {
    if tag == 0 {
        0
    } else {
        tag ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Fills one sector.
pub fn fill(sector: &mut [u8], tag: Tag) {
    for (index, bytes) in sector.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(tag, index).to_le_bytes());
    }
}

/// What one sector holds; `None` if it is not whole.
pub fn read(sector: &[u8]) -> Option<Tag> {
    let word_at = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let mut words = sector.chunks_exact(8).map(word_at).enumerate();
    let (_, tag) = words.next()?;
    words
        .all(|(index, found)| found == word(tag, index))
        .then_some(tag)
}

/// The data of a write of `count` sectors from `first` on.
pub fn data(write: u32, first: u64, count: u64) -> Vec<u8> {
    let mut data = vec![0; count as usize * SECTOR];
    for (sector, place) in data.chunks_exact_mut(SECTOR).zip(first..) {
        fill(sector, tag(write, place));
    }
    data
}

/// For messages.
pub fn show(tag: Option<Tag>) -> String {
    match tag {
        None => "a mixture".to_owned(),
        Some(0) => "zeroes".to_owned(),
        Some(BAD) => "a mark".to_owned(),
        Some(tag) => format!("write {} for sector {}", tag >> 32, (tag & 0xffff_ffff) - 1),
    }
}

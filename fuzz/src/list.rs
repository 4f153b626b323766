//! A list as long as the input.

use arbitrary::{Arbitrary, Result, Unstructured};

/// Elements until the input is used up: the `Vec` of `arbitrary` ends at the first even byte in
/// front of an element, which inputs of a random length hardly ever get past.
#[derive(Clone, Debug)]
pub struct List<T>(pub Vec<T>);

/// Elements at most.
const MAX: usize = 400;

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for List<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut elements = Vec::new();
        while !u.is_empty() && elements.len() < MAX {
            elements.push(u.arbitrary()?);
        }
        Ok(Self(elements))
    }
}

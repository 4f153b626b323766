//! What is printed, and the document that it is written to.

use nvmf_benches::load::Error;
use std::fmt::Display;
use std::path::Path;

/// The lines of one section: printed as they come, and kept.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    /// Adds a line.
    pub(crate) fn line(&mut self, line: impl Display) {
        let line = line.to_string();
        println!("{line}");
        self.0 += &line;
        self.0.push('\n');
    }

    /// Puts the lines between the markers of a section in a document, which has to have them:
    /// `<!-- compare:NAME -->` and `<!-- /compare:NAME -->`.
    pub(crate) fn write(&self, document: &Path, section: &str) -> Result<(), Error> {
        let name = document.display();
        let text = std::fs::read_to_string(document).map_err(|error| format!("{name}: {error}"))?;
        let text = replaced(&text, section, &self.0)
            .ok_or_else(|| format!("{name} has no markers of compare:{section}"))?;
        Ok(std::fs::write(document, text)?)
    }
}

fn replaced(text: &str, section: &str, lines: &str) -> Option<String> {
    let (before, rest) = text.split_once(&format!("<!-- compare:{section} -->\n"))?;
    let (_, after) = rest.split_once(&format!("<!-- /compare:{section} -->"))?;
    Some(format!(
        "{before}<!-- compare:{section} -->\n{lines}<!-- /compare:{section} -->{after}"
    ))
}

/// The middle one; of an even number, the higher of the two.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// MiB (2^20 bytes).
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0]), 4.0);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = "a\n<!-- compare:x -->\nold\n<!-- /compare:x -->\nb\n";
        let new = replaced(text, "x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- compare:x -->\nnew\n<!-- /compare:x -->\nb\n");
        assert_eq!(replaced(text, "y", "new\n"), None);
    }
}

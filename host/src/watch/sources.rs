//! Whose memory the buffers of a chain are, in few words: a file's pages in a row are one thing.

use vnic::observe::protocol::BufferSnapshot;

/// Memory of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// A file's path, `slab kmalloc-1k`, …
    pub(super) name: String,
    /// The first and the last page of it, where it is a file's.
    pub(super) pages: Option<(u64, u64)>,
    pub(super) bytes: u64,
}

/// What buffers that the device reads are of, the owner of most bytes first; what is not known is left out.
pub(super) fn of(buffers: &[BufferSnapshot]) -> Vec<Source> {
    let mut all: Vec<Source> = Vec::new();
    for buffer in buffers.iter().filter(|buffer| !buffer.writable) {
        let (name, page) = match (&buffer.label, buffer.file_page) {
            (Some(label), _) => named(label),
            (None, Some(page)) => ("the file", Some(page)),
            (None, None) => continue,
        };
        let bytes = u64::from(buffer.len);
        match all.iter_mut().find(|source| source.name == name && source.pages.is_some() == page.is_some()) {
            Some(source) => {
                source.bytes += bytes;
                if let (Some((first, last)), Some(page)) = (&mut source.pages, page) {
                    (*first, *last) = ((*first).min(page), (*last).max(page));
                }
            }
            None => all.push(Source { name: name.to_owned(), pages: page.map(|page| (page, page)), bytes }),
        }
    }
    all.sort_by_key(|source| std::cmp::Reverse(source.bytes));
    all
}

/// A label without the page's number, and that number.
fn named(label: &str) -> (&str, Option<u64>) {
    let page = label.rsplit_once(" page ").and_then(|(name, page)| Some((name, page.parse().ok()?)));
    page.map_or((label, None), |(name, page)| (name, Some(page)))
}

impl Source {
    /// In so many signs at most: the end of a path says more than its beginning.
    pub(super) fn words(&self, most: usize) -> String {
        let pages = match self.pages {
            None => String::new(),
            Some((first, last)) if first == last => format!(" page {first}"),
            Some((first, last)) => format!(" pages {first}–{last}"),
        };
        let room = most.saturating_sub(pages.chars().count());
        let len = self.name.chars().count();
        if len <= room {
            return format!("{}{pages}", self.name);
        }
        let end: String = self.name.chars().skip(len - room.saturating_sub(1)).collect();
        format!("…{end}{pages}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_source_and_its_end_is_what_is_seen() {
        let buffer = |len, label: &str| BufferSnapshot { label: Some(label.to_owned()), ..BufferSnapshot::at(0, len) };
        let buffers = [
            buffer(66, "slab kmalloc-1k"),
            buffer(608, "/srv/big.bin page 2"),
            buffer(4096, "/srv/big.bin page 3"),
            BufferSnapshot { writable: true, ..buffer(4096, "/srv/other page 1") },
        ];
        let sources = of(&buffers);
        let names: Vec<(String, u64)> = sources.iter().map(|source| (source.words(80), source.bytes)).collect();
        assert_eq!(names, [("/srv/big.bin pages 2–3".to_owned(), 4704), ("slab kmalloc-1k".to_owned(), 66)]);
        assert_eq!(sources[0].words(18), "…big.bin pages 2–3");
    }
}

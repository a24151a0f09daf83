//! BTF, the kernel's description of its own types: as much of a parser as is needed to find a member's offset by name.
//!
//! Operation: one pass over the types notes where each begins and which are called as somebody asks; a member is then
//! looked for by name, through structures and unions without one. (Documentation/bpf/btf.rst in the kernel's source.)
//!
//! Invariants: the bytes are a copy that the guest cannot change any more, and still nobody's friend: every number in them is
//! checked, a nest of types ends at [`MAX_DEPTH`], and all look-ups together at [`MAX_STEPS`].

use std::cell::Cell;
use std::collections::HashMap;

/// How every kernel's begins: magic, version 1, no flags, a header of 24 bytes.
pub const MAGIC: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
/// Bytes of the header.
pub const HEADER: usize = 24;
/// Most bytes of a kernel's: three times what they have.
pub const MAX_BYTES: usize = 16 << 20;
/// Types and strings have at least so many bytes in a kernel's own; a module's, or what a program carries, has fewer.
const LEAST: u32 = 1 << 20;
/// Structures within structures.
const MAX_DEPTH: u32 = 16;
/// Longest name that is read, bytes.
const MAX_NAME: usize = 128;
/// Types and members that all look-ups together may look at: a hundred times what they need.
const MAX_STEPS: u32 = 1 << 20;

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_ENUM64: u32 = 19;

/// Why bytes are no BTF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The header is none of a kernel's.
    #[error("its header is none")]
    Header,
    /// A type goes past the end.
    #[error("type {0} goes past its end")]
    Cut(u32),
    /// A kind that is not known, so that what follows cannot be read.
    #[error("type {0} is of the unknown kind {1}")]
    Kind(u32, u32),
}

/// The parts' lengths, of a header that may be a kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    types: usize,
    strings_at: usize,
    strings: usize,
}

impl Header {
    /// Reads one; `None`: it is none of a kernel's.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let numbers = bytes.strip_prefix(&MAGIC)?;
        let number = |at: usize| Some(u32::from_le_bytes(numbers.get(4 * at..4 * at + 4)?.try_into().ok()?));
        let (type_off, type_len, str_off, str_len) = (number(0)?, number(1)?, number(2)?, number(3)?);
        let fits = type_off == 0 && type_len > LEAST && str_off >= type_len && str_len > LEAST / 4;
        let header = Header { types: type_len as usize, strings_at: str_off as usize, strings: str_len as usize };
        (fits && header.bytes() <= MAX_BYTES).then_some(header)
    }

    /// Reads a module's, of these bytes in all: its types and strings go on where the kernel's end, and are few.
    fn parse_module(bytes: &[u8]) -> Option<Self> {
        let numbers = bytes.strip_prefix(&MAGIC)?;
        let number = |at: usize| Some(u32::from_le_bytes(numbers.get(4 * at..4 * at + 4)?.try_into().ok()?) as usize);
        let (0, types, strings_at, strings) = (number(0)?, number(1)?, number(2)?, number(3)?) else { return None };
        Some(Header { types, strings_at, strings })
    }

    /// All of it, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // Three numbers of 32 bits.
        HEADER + self.strings_at + self.strings
    }
}

/// Types, and those of them that have one of the names asked for.
#[derive(Debug)]
pub struct Btf<'b> {
    /// The kernel's, of a module's: what it goes on from.
    base: Option<&'b Btf<'b>>,
    types: &'b [u8],
    strings: &'b [u8],
    /// Where each type begins; the type `void`, which has no bytes, comes first.
    starts: Vec<u32>,
    named: HashMap<&'b [u8], Vec<u32>>,
    left: Cell<u32>,
}

/// A member, found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the structure.
    pub offset: u32,
    kind: u32,
}

#[derive(Clone, Copy)]
struct Type<'b> {
    bytes: &'b [u8],
    at: usize,
    name: u32,
    kind: u32,
    /// Of how many members.
    len: u32,
    /// Are the members' offsets with sizes of bit fields?
    bits: bool,
    /// Size, or another type.
    size: u32,
}

impl<'b> Btf<'b> {
    /// Reads all types; structures and enumerations are found later if their names are among `names`.
    ///
    /// # Errors
    /// It is no BTF.
    pub fn parse(bytes: &'b [u8], names: &[&'b str]) -> Result<Self, BtfError> {
        Btf::parse_parts(None, Header::parse(bytes).ok_or(BtfError::Header)?, bytes, names)
    }

    /// Reads a module's types, which go on from the kernel's.
    ///
    /// # Errors
    /// It is no BTF.
    pub fn parse_module(base: &'b Btf<'b>, bytes: &'b [u8], names: &[&'b str]) -> Result<Self, BtfError> {
        Btf::parse_parts(Some(base), Header::parse_module(bytes).ok_or(BtfError::Header)?, bytes, names)
    }

    fn parse_parts(
        base: Option<&'b Btf<'b>>,
        header: Header,
        bytes: &'b [u8],
        names: &[&'b str],
    ) -> Result<Self, BtfError> {
        let part = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
        let types = part(HEADER, header.types).ok_or(BtfError::Header)?;
        let strings = part(HEADER + header.strings_at, header.strings).ok_or(BtfError::Header)?;
        // The kernel's own have `void` before the first.
        let starts = if base.is_some() { Vec::new() } else { vec![u32::MAX] };
        let mut btf = Btf { base, types, strings, starts, named: HashMap::new(), left: Cell::new(MAX_STEPS) };
        for name in names {
            btf.named.insert(name.as_bytes(), Vec::new());
        }
        let mut at = 0;
        while at < types.len() {
            let id = btf.starts.len() as u32;
            let one = type_at(types, at).ok_or(BtfError::Cut(id))?;
            let more = match one.kind {
                1 | 14 | 17 => 4,
                2 | 7..=12 | 16 | 18 => 0,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | 15 | KIND_ENUM64 => 12 * one.len,
                KIND_ENUM | 13 => 8 * one.len,
                kind => return Err(BtfError::Kind(id, kind)),
            };
            btf.starts.push(at as u32);
            if matches!(one.kind, KIND_STRUCT | KIND_ENUM)
                && one.len > 0
                && let Some(ids) = btf.named.get_mut(name_in(base, strings, one.name))
            {
                ids.push(base.map_or(0, |base| base.starts.len() as u32) + id);
            }
            at += 12 + more as usize;
        }
        if at == types.len() { Ok(btf) } else { Err(BtfError::Cut(btf.starts.len() as u32 - 1)) }
    }

    /// How many types there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Never: `void` is always one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// A structure's size, bytes.
    #[must_use]
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.structures(structure).next().map(|one| one.size)
    }

    /// The offset of `a.b.c` in a structure, bytes.
    #[must_use]
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        self.structures(structure).find_map(|one| self.along(one, path))
    }

    /// The value of an enumeration's member, whichever of the enumerations of this name has it.
    #[must_use]
    pub fn value(&self, enumeration: &str, member: &str) -> Option<u32> {
        let enumerations = self.ids(enumeration).filter(|one| one.kind == KIND_ENUM);
        let members = |one: Type<'b>| (0..one.len).map(move |index| (one, one.at + 12 + 8 * index as usize));
        enumerations.flat_map(members).find_map(|(one, at)| {
            self.step()?;
            (self.name(number(one.bytes, at)?) == member.as_bytes()).then(|| number(one.bytes, at + 4)).flatten()
        })
    }

    /// The members of the first enumeration of this name, and their values; no more than `most`.
    #[must_use]
    pub fn members(&self, enumeration: &str, most: u32) -> Vec<(&'b [u8], u32)> {
        let Some(one) = self.ids(enumeration).find(|one| one.kind == KIND_ENUM) else { return Vec::new() };
        let places = (0..one.len.min(most)).map(|index| one.at + 12 + 8 * index as usize);
        let member = |at| Some((self.name(number(one.bytes, at)?), number(one.bytes, at + 4)?));
        places.map_while(|at| self.step().and_then(|()| member(at))).collect()
    }

    fn ids(&self, name: &str) -> impl Iterator<Item = Type<'b>> {
        // What a module shares with the kernel is only there.
        let own = |btf: &'b Btf<'_>| btf.named.get(name.as_bytes()).into_iter().flatten();
        let all = self.named.get(name.as_bytes()).into_iter().flatten().chain(self.base.into_iter().flat_map(own));
        all.filter_map(|id| self.type_of(*id))
    }

    fn structures(&self, name: &str) -> impl Iterator<Item = Type<'b>> {
        self.ids(name).filter(|one| one.kind == KIND_STRUCT)
    }

    fn along(&self, structure: Type<'b>, path: &str) -> Option<u32> {
        let (mut here, mut offset) = (structure, 0_u32);
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let found = self.member(here, name.as_bytes(), MAX_DEPTH)?;
            offset = offset.checked_add(found.offset)?;
            if names.peek().is_some() {
                here = self.plain(found.kind)?;
            }
        }
        Some(offset)
    }

    /// Behind the names and qualifiers of a type.
    fn plain(&self, id: u32) -> Option<Type<'b>> {
        let mut one = self.type_of(id)?;
        for _ in 0..MAX_DEPTH {
            match one.kind {
                // typedef, volatile, const, restrict, type tag
                KIND_TYPEDEF | 9..=11 | 18 => one = self.type_of(one.size)?,
                _ => return Some(one),
            }
        }
        None
    }

    fn member(&self, structure: Type<'b>, name: &[u8], depth: u32) -> Option<Member> {
        if !matches!(structure.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let depth = depth.checked_sub(1)?;
        for index in 0..structure.len {
            self.step()?;
            let at = structure.at + 12 + 12 * index as usize;
            let word = |at| number(structure.bytes, at);
            let (name_off, kind, offset) = (word(at)?, word(at + 4)?, word(at + 8)?);
            let offset = if structure.bits { offset & 0xff_ffff } else { offset } / 8;
            let own = self.name(name_off);
            if own == name {
                return Some(Member { offset, kind });
            }
            if own.is_empty() {
                let within = self.plain(kind).and_then(|one| self.member(one, name, depth));
                if let Some(found) = within {
                    return Some(Member { offset: offset.checked_add(found.offset)?, ..found });
                }
            }
        }
        None
    }

    fn step(&self) -> Option<()> {
        self.left.set(self.left.get().checked_sub(1)?);
        Some(())
    }

    fn type_of(&self, id: u32) -> Option<Type<'b>> {
        self.step()?;
        let before = self.base.map_or(0, |base| base.starts.len());
        match (self.base, (id as usize).checked_sub(before)) {
            (Some(base), None) => base.type_of(id),
            (_, own) => type_at(self.types, *self.starts.get(own?)? as usize),
        }
    }

    fn name(&self, at: u32) -> &'b [u8] {
        name_in(self.base, self.strings, at)
    }
}

fn type_at(bytes: &[u8], at: usize) -> Option<Type<'_>> {
    let info = number(bytes, at.checked_add(4)?)?;
    let (kind, len) = (info >> 24 & 0x1f, info & 0xffff);
    Some(Type { bytes, at, name: number(bytes, at)?, kind, len, bits: info >> 31 == 1, size: number(bytes, at + 8)? })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// A name of the kernel's or, behind these, of the module's own.
fn name_in<'b>(base: Option<&'b Btf<'b>>, strings: &'b [u8], at: u32) -> &'b [u8] {
    match base {
        Some(base) if (at as usize) < base.strings.len() => name_at(base.strings, at),
        Some(base) => name_at(strings, at - base.strings.len() as u32),
        None => name_at(strings, at),
    }
}

/// A name; none, where there is no string.
fn name_at(strings: &[u8], at: u32) -> &[u8] {
    let rest = strings.get(at as usize..).unwrap_or_default();
    let rest = rest.get(..MAX_NAME).unwrap_or(rest);
    memchr::memchr(0, rest).and_then(|end| rest.get(..end)).unwrap_or_default()
}

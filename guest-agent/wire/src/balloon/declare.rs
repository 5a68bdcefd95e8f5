//! How messages are declared: each once, with its number, fields, limits, text and an example.
//!
//! [`messages!`] makes of a declaration the variant, its name, its encoding and decoding. In tests it also makes what
//! the protocol's document says of the message, and random messages. [`group!`] does the same for a struct of fields,
//! [`codes!`] for an enum of numbers. Declared doc comments are the text of the document too, so they hold no links to
//! items.

use std::ops::RangeInclusive;

#[cfg(test)]
use proptest::prelude::*;

#[cfg(test)]
use super::document::Table;
use super::{MAX_MESSAGE_BYTES, oversized};
use crate::{DecodeError, Reader, Writer};

/// What a field may hold: the range of a number, of the bytes of a text, or of the length of a list.
pub(super) type Limit = RangeInclusive<u64>;
/// The limit of a field that is declared without one.
pub(super) const ANY: Limit = 0..=u64::MAX;

/// Something that a message can contain.
pub(super) trait Field: Sized {
    /// Appends the field; cuts a text that is longer than `limit`.
    fn write(&self, limit: &Limit, to: &mut Writer);

    /// Reads the field. Errors call it `name`.
    fn read(from: &mut Reader<'_>, name: &'static str, limit: &Limit) -> Result<Self, DecodeError>;

    /// Appends its rows to the table of a message.
    #[cfg(test)]
    fn describe(table: &mut Table, name: &'static str, meaning: &str, limit: &Limit);

    /// Any value within `limit`.
    #[cfg(test)]
    fn any(limit: &Limit) -> BoxedStrategy<Self>;
}

/// Something that a message can contain a list of.
pub(super) trait Listed: Field {
    /// What errors and the document call the length of the list.
    const NUMBER: &'static str;
}

/// The numbers of a limit, for people; `None` if every number is allowed.
pub(super) fn words(limit: &Limit) -> Option<String> {
    match (*limit.start(), *limit.end()) {
        (0, u64::MAX) => None,
        (least, most) if most >= u32::MAX.into() => Some(format!("{least} and up")),
        (least, most) => Some(format!("{least} to {most}")),
    }
}

/// The error for a value outside of its limit.
pub(super) fn outside(field: &'static str, value: u64, limit: &Limit) -> DecodeError {
    let allowed = words(limit).unwrap_or_default().into();
    DecodeError::Value {
        field,
        value,
        allowed,
    }
}

pub(super) fn check(name: &'static str, value: u64, limit: &Limit) -> Result<(), DecodeError> {
    if limit.contains(&value) {
        return Ok(());
    }
    Err(outside(name, value, limit))
}

macro_rules! numbers {
    ($($number:ident)*) => {$(
        impl Field for $number {
            fn write(&self, _limit: &Limit, to: &mut Writer) {
                to.$number(*self);
            }

            fn read(from: &mut Reader<'_>, name: &'static str, limit: &Limit) -> Result<Self, DecodeError> {
                let number = from.$number(name)?;
                check(name, number.into(), limit)?;
                Ok(number)
            }

            #[cfg(test)]
            fn describe(table: &mut Table, name: &'static str, meaning: &str, limit: &Limit) {
                table.row(stringify!($number), size_of::<Self>(), name, meaning, limit);
            }

            #[cfg(test)]
            fn any(limit: &Limit) -> BoxedStrategy<Self> {
                let most = (*limit.end()).min(Self::MAX.into());
                (*limit.start()..=most).prop_map(|number| number as Self).boxed()
            }
        }
    )*};
}

numbers! { u16 u32 u64 }

fn cut<'a>(text: &'a str, limit: &Limit) -> &'a str {
    &text[..text.floor_char_boundary(*limit.end() as usize)]
}

impl Field for String {
    fn write(&self, limit: &Limit, to: &mut Writer) {
        to.text(cut(self, limit));
    }

    fn read(from: &mut Reader<'_>, name: &'static str, limit: &Limit) -> Result<Self, DecodeError> {
        Ok(from.text(name, *limit.end() as usize)?.to_owned())
    }

    #[cfg(test)]
    fn describe(table: &mut Table, name: &'static str, meaning: &str, limit: &Limit) {
        let meaning = format!("{meaning}; at most {} bytes", limit.end());
        table.row("text", 0, name, &meaning, &ANY);
    }

    #[cfg(test)]
    fn any(limit: &Limit) -> BoxedStrategy<Self> {
        let limit = limit.clone();
        let text = "\\PC{0,99}".prop_map(move |text| cut(&text, &limit).to_owned());
        text.boxed()
    }
}

impl<T: Listed + std::fmt::Debug + 'static> Field for Vec<T> {
    fn write(&self, limit: &Limit, to: &mut Writer) {
        let len = self.len().min(*limit.end() as usize);
        to.u32(len as u32);
        self[..len].iter().for_each(|one| one.write(&ANY, to));
    }

    fn read(from: &mut Reader<'_>, name: &'static str, limit: &Limit) -> Result<Self, DecodeError> {
        let number = u32::read(from, T::NUMBER, limit)?;
        (0..number).map(|_| T::read(from, name, &ANY)).collect()
    }

    #[cfg(test)]
    fn describe(table: &mut Table, name: &'static str, _meaning: &str, limit: &Limit) {
        u32::describe(table, T::NUMBER, "n", limit);
        table.each(|table| T::describe(table, name, "", &ANY));
    }

    #[cfg(test)]
    fn any(limit: &Limit) -> BoxedStrategy<Self> {
        let len = *limit.start() as usize..=(*limit.end()).min(200) as usize;
        proptest::collection::vec(T::any(&ANY), len).boxed()
    }
}

/// What is declared of a message beside its fields.
pub(super) struct Kind {
    pub(super) number: u16,
    pub(super) name: &'static str,
    pub(super) version: u16,
    /// The capability that the agent must have offered.
    pub(super) needs: Option<super::Capabilities>,
    pub(super) reply: Option<&'static str>,
}

impl Kind {
    /// Begins a message.
    pub(super) fn header(&self, seq: u32) -> Writer {
        let mut to = Writer::new();
        to.u16(self.version).u16(self.number).u32(seq);
        to
    }
}

/// Reads the header of a message, whose type says the version that it must have. Returns the type and the sequence
/// number too.
pub(super) fn open<'a>(
    datagram: &'a [u8],
    version: impl Fn(u16) -> u16,
    seqs: &Limit,
) -> Result<(Reader<'a>, u16, u32), DecodeError> {
    if datagram.len() > MAX_MESSAGE_BYTES {
        return Err(oversized(datagram.len()));
    }
    let mut from = Reader::new(datagram);
    let (theirs, kind, seq) = (from.u16("version")?, from.u16("type")?, from.u32("seq")?);
    let ours = version(kind);
    if theirs != ours {
        return Err(DecodeError::Version {
            protocol: "balloon",
            theirs,
            ours,
        });
    }
    check("seq", seq.into(), seqs)?;
    Ok((from, kind, seq))
}

/// `or!(default; what is declared, if anything)`.
macro_rules! or {
    ($default:expr;) => {
        $default
    };
    ($default:expr; $given:expr) => {
        $given
    };
}

/// Declares an enum of numbers that ascend without a gap, and makes it a [`Field`].
macro_rules! codes {
    ($(#[$meta:meta])* pub enum $name:ident: $repr:ident { $($(#[$about:meta])* $code:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr($repr)]
        pub enum $name { $($(#[$about])* $code = $number,)* }

        impl $name {
            pub(super) const ALL: &[Self] = &[$(Self::$code),*];
        }

        impl Field for $name {
            fn write(&self, _limit: &Limit, to: &mut Writer) {
                to.$repr(*self as $repr);
            }

            fn read(from: &mut Reader<'_>, name: &'static str, _limit: &Limit) -> Result<Self, DecodeError> {
                let number = from.$repr(name)?;
                let code = Self::ALL.iter().find(|code| **code as $repr == number);
                let all = Self::ALL[0] as u64..=Self::ALL[Self::ALL.len() - 1] as u64;
                code.copied().ok_or_else(|| outside(name, number.into(), &all))
            }

            #[cfg(test)]
            fn describe(table: &mut Table, name: &'static str, meaning: &str, _limit: &Limit) {
                $repr::describe(table, name, meaning, &ANY);
            }

            #[cfg(test)]
            fn any(_limit: &Limit) -> BoxedStrategy<Self> {
                proptest::sample::select(Self::ALL).boxed()
            }
        }
    };
}

/// Declares a struct whose fields follow one another in a message, and makes it a [`Field`].
macro_rules! group {
    ($(#[$meta:meta])* pub struct $name:ident $(checked by $check:path)? {
        $($(#[doc = $about:literal])* $field:ident: $ty:ty $([$limit:expr])?,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $about])* $(#[doc = ""] #[doc = concat!("Allowed: `", stringify!($limit), "`.")])? pub $field: $ty,)*
        }

        impl Field for $name {
            fn write(&self, _limit: &Limit, to: &mut Writer) {
                $(self.$field.write(&or!(ANY; $($limit)?), to);)*
            }

            fn read(from: &mut Reader<'_>, _name: &'static str, _limit: &Limit) -> Result<Self, DecodeError> {
                let group = Self {
                    $($field: Field::read(from, stringify!($field), &or!(ANY; $($limit)?))?,)*
                };
                $($check(&group)?;)?
                Ok(group)
            }

            #[cfg(test)]
            fn describe(table: &mut Table, _name: &'static str, _meaning: &str, _limit: &Limit) {
                $(<$ty>::describe(table, stringify!($field), concat!($($about),*), &or!(ANY; $($limit)?));)*
            }

            #[cfg(test)]
            fn any(_limit: &Limit) -> BoxedStrategy<Self> {
                let fields = ($(<$ty>::any(&or!(ANY; $($limit)?)),)*);
                let groups = fields.prop_map(|($($field,)*)| Self { $($field),* });
                $(let groups = groups.prop_filter("the check", |group| $check(group).is_ok());)?
                groups.boxed()
            }
        }
    };
}

/// Declares what one side says. The parts of a declaration, those in brackets only where they apply:
///
/// ```text
/// /// text for the document and for rustdoc
/// NAME = type [, version header version] [, needs capability] [, reply NAME]: Variant [(name: Type [limit])]
///     [{ /// meaning
///        field: Type [limit], }]
///     , example seq "what it says" value;
/// ```
macro_rules! messages {
    ($(#[$meta:meta])* pub enum $side:ident (seq $seqs:expr) {$(
        $(#[doc = $text:literal])*
        $name:ident = $number:literal
            $(, version $version:ident)? $(, needs $needs:ident)? $(, reply $reply:ident)?:
            $variant:ident
            $(($inner:ident: $of:ty $([$within:expr])?))?
            $({$($(#[doc = $about:literal])* $field:ident: $ty:ty $([$limit:expr])?,)*})?
            $(, example $seq:literal $caption:literal $example:expr)+;
    )*}) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $side {$(
            $(#[doc = $text])*
            $variant $(($of))? $({
                $($(#[doc = $about])* $(#[doc = ""] #[doc = concat!("Allowed: `", stringify!($limit), "`.")])? $field: $ty,)*
            })?,
        )*}

        impl $side {
            pub(super) const fn kind(&self) -> Kind {
                match self {$(
                    Self::$variant { .. } => Kind {
                        number: $number,
                        name: stringify!($name),
                        version: or!(VERSION; $($version)?),
                        needs: or!(None; $(Some(Capabilities::$needs))?),
                        reply: or!(None; $(Some(stringify!($reply)))?),
                    },
                )*}
            }

            /// The name the protocol gives this message.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                self.kind().name
            }

            /// The datagram of this message. The `seq` of a request must not be 0. That of a reply is the request's, and
            /// 0 if nobody asked.
            #[must_use]
            pub fn encode(&self, seq: u32) -> Vec<u8> {
                let mut to = self.kind().header(seq);
                match self {$(
                    Self::$variant $(($inner))? $({ $($field),* })? => {
                        $($inner.write(&or!(ANY; $($within)?), &mut to);)?
                        $($($field.write(&or!(ANY; $($limit)?), &mut to);)*)?
                    }
                )*}
                to.finish()
            }

            /// The sequence number and the message in a datagram.
            ///
            /// # Errors
            /// [`DecodeError`] naming the field that breaks the format or a limit.
            pub fn decode(datagram: &[u8]) -> Result<(u32, Self), DecodeError> {
                let version = |kind| match kind {
                    $($($number => $version,)?)*
                    _ => VERSION,
                };
                let (mut from, kind, seq) = open(datagram, version, &($seqs))?;
                let message = match kind {
                    $($number => Self::$variant
                        $((<$of>::read(&mut from, stringify!($inner), &or!(ANY; $($within)?))?))?
                        $({ $($field: Field::read(&mut from, stringify!($field), &or!(ANY; $($limit)?))?),* })?,)*
                    other => return Err(DecodeError::Value {
                        field: "type",
                        value: other.into(),
                        allowed: [$(concat!(stringify!($number), " (", stringify!($name), ")")),*].join(", ").into(),
                    }),
                };
                from.end()?;
                Ok((seq, message))
            }

            /// What the document says of each message.
            #[cfg(test)]
            pub(super) fn described() -> Vec<super::document::Described> {
                vec![$({
                    let table = &mut Table::default();
                    $(<$of>::describe(table, stringify!($inner), "", &or!(ANY; $($within)?));)?
                    $($(<$ty>::describe(table, stringify!($field), concat!($($about),*), &or!(ANY; $($limit)?));)*)?
                    let examples: [(u32, &str, Self); _] = [$(($seq, $caption, $example)),+];
                    super::document::Described {
                        kind: examples[0].2.kind(),
                        number: stringify!($number),
                        text: &[$($text),*],
                        needs: or!(None; $(Some(stringify!($needs)))?),
                        table: std::mem::take(table),
                        examples: examples.map(|(seq, caption, example)| (seq, caption, example.encode(seq))).into(),
                    }
                }),*]
            }

            #[cfg(test)]
            pub(super) fn any() -> BoxedStrategy<Self> {
                let all = [$({
                    let fields = (
                        Just(()),
                        $(<$of>::any(&or!(ANY; $($within)?)),)?
                        $($(<$ty>::any(&or!(ANY; $($limit)?)),)*)?
                    );
                    let message = |((), $($inner,)? $($($field,)*)?)| Self::$variant $(($inner))? $({ $($field),* })?;
                    fields.prop_map(message).boxed()
                }),*];
                proptest::strategy::Union::new(all).boxed()
            }
        }
    };
}

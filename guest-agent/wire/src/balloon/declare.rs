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

/// What is declared of a field beside its type.
pub(super) struct Of {
    pub(super) name: &'static str,
    pub(super) meaning: &'static str,
    pub(super) limit: Limit,
}

impl Of {
    /// The same for a part of the field.
    pub(super) const fn part(name: &'static str, meaning: &'static str, limit: Limit) -> Self {
        Self {
            name,
            meaning,
            limit,
        }
    }

    /// The numbers that are allowed, for people; `None` if all are.
    pub(super) fn allowed(&self) -> Option<String> {
        match (*self.limit.start(), *self.limit.end()) {
            (0, u64::MAX) => None,
            (least, most) if most >= u32::MAX.into() => Some(format!("{least} and up")),
            (least, most) => Some(format!("{least} to {most}")),
        }
    }

    pub(super) fn check(&self, value: u64) -> Result<(), DecodeError> {
        if self.limit.contains(&value) {
            return Ok(());
        }
        let (field, allowed) = (self.name, self.allowed().unwrap_or_default().into());
        Err(DecodeError::Value {
            field,
            value,
            allowed,
        })
    }
}

/// Something that a message can contain.
pub(super) trait Field: Sized + std::fmt::Debug + 'static {
    /// Appends the field; cuts a text that is too long.
    fn write(&self, of: &Of, to: &mut Writer);
    /// Reads the field.
    fn read(of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError>;
    /// Appends its rows to the table of a message.
    #[cfg(test)]
    fn describe(of: &Of, table: &mut Table);
    /// Any value within the limit.
    #[cfg(test)]
    fn any(of: &Of) -> BoxedStrategy<Self>;
}

/// A type that a message contains in the form of another.
pub(super) trait Carried: Sized + std::fmt::Debug + 'static {
    type By: Field;
    const LIMIT: Limit = ANY;
    fn pack(&self) -> Self::By;
    fn unpack(by: Self::By) -> Result<Self, DecodeError>;
    /// Any value.
    #[cfg(test)]
    fn any_packed() -> BoxedStrategy<Self::By> {
        Self::By::any(&Of::part("", "", Self::LIMIT))
    }
}

impl<T: Carried> Field for T {
    fn write(&self, of: &Of, to: &mut Writer) {
        self.pack().write(of, to);
    }

    fn read(of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::unpack(T::By::read(&Of::part(of.name, of.meaning, T::LIMIT), from)?)
    }

    #[cfg(test)]
    fn describe(of: &Of, table: &mut Table) {
        T::By::describe(&Of::part(of.name, of.meaning, T::LIMIT), table);
    }

    #[cfg(test)]
    fn any(_of: &Of) -> BoxedStrategy<Self> {
        Self::any_packed()
            .prop_map(|by| Self::unpack(by).expect("it is allowed"))
            .boxed()
    }
}

macro_rules! numbers {
    ($($number:ident)*) => {$(
        impl Field for $number {
            fn write(&self, _of: &Of, to: &mut Writer) {
                to.$number(*self);
            }

            fn read(of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let number = from.$number(of.name)?;
                of.check(number.into()).map(|()| number)
            }

            #[cfg(test)]
            fn describe(of: &Of, table: &mut Table) {
                table.row(stringify!($number), size_of::<Self>(), of);
            }

            #[cfg(test)]
            fn any(of: &Of) -> BoxedStrategy<Self> {
                let most = (*of.limit.end()).min(Self::MAX.into());
                (*of.limit.start()..=most).prop_map(|number| number as Self).boxed()
            }
        }
    )*};
}

numbers! { u16 u32 u64 }

impl Field for String {
    fn write(&self, of: &Of, to: &mut Writer) {
        // Cut and not refused: these texts are for people, and must not keep a message from being sent.
        to.text(&self[..self.floor_char_boundary(*of.limit.end() as usize)]);
    }

    fn read(of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(from.text(of.name, *of.limit.end() as usize)?.to_owned())
    }

    #[cfg(test)]
    fn describe(of: &Of, table: &mut Table) {
        table.row("text", 0, of);
    }

    /// A character has up to four bytes.
    #[cfg(test)]
    fn any(of: &Of) -> BoxedStrategy<Self> {
        let characters = proptest::char::any();
        let most = *of.limit.end() as usize / 4;
        let text = proptest::collection::vec(characters, 0..=most.min(200));
        text.prop_map(String::from_iter).boxed()
    }
}

/// A list: how many there are, then each of them.
impl<T: Field> Field for Vec<T> {
    fn write(&self, of: &Of, to: &mut Writer) {
        let len = self.len().min(*of.limit.end() as usize);
        to.u32(len as u32);
        self[..len].iter().for_each(|one| one.write(of, to));
    }

    fn read(of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = u32::read(of, from)?;
        // One by one: where the number is a lie, the message ends before memory is set aside for all of them.
        (0..number).map(|_| T::read(of, from)).collect()
    }

    #[cfg(test)]
    fn describe(of: &Of, table: &mut Table) {
        u32::describe(of, table);
        table.each(|table| T::describe(of, table));
    }

    #[cfg(test)]
    fn any(of: &Of) -> BoxedStrategy<Self> {
        let len = *of.limit.start() as usize..=(*of.limit.end()).min(200) as usize;
        proptest::collection::vec(T::any(of), len).boxed()
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
    seqs: Limit,
) -> Result<(Reader<'a>, u16, u32), DecodeError> {
    if datagram.len() > MAX_MESSAGE_BYTES {
        return Err(oversized(datagram.len()));
    }
    let mut from = Reader::new(datagram);
    let (theirs, kind, seq) = (from.u16("version")?, from.u16("type")?, from.u32("seq")?);
    // The type is read first, because messages of the handshake have a version of their own.
    let ours = version(kind);
    if theirs != ours {
        return Err(DecodeError::Version {
            protocol: "balloon",
            theirs,
            ours,
        });
    }
    Of::part("seq", "", seqs).check(seq.into())?;
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

/// What is declared of a field: the name that errors and the document have for it, what it means, its limit.
macro_rules! of {
    ($field:ident $($label:literal)?; $($about:literal)*; $($limit:expr)?) => {
        Of::part(or!(stringify!($field); $($label)?), concat!($($about),*), or!(ANY; $($limit)?))
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

        impl Carried for $name {
            type By = $repr;
            const LIMIT: Limit = Self::ALL[0] as u64..=Self::ALL[Self::ALL.len() - 1] as u64;

            fn pack(&self) -> $repr {
                *self as $repr
            }

            /// The limit leaves only numbers that are there.
            fn unpack(number: $repr) -> Result<Self, DecodeError> {
                Ok(Self::ALL[usize::from(number as u16 - Self::ALL[0] as u16)])
            }
        }
    };
}

/// Declares a struct whose fields follow one another in a message, and makes it a [`Field`].
macro_rules! group {
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(checked by $check:path)? {
        $($(#[doc = $about:literal])* $field:ident $($label:literal)?: $ty:ty $([$limit:expr])?,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name {
            $($(#[doc = $about])* $(#[doc = ""] #[doc = concat!("Allowed: `", stringify!($limit), "`.")])? pub $field: $ty,)*
        }

        impl Field for $name {
            fn write(&self, _of: &Of, to: &mut Writer) {
                $(self.$field.write(&of!($field; ; $($limit)?), to);)*
            }

            fn read(_of: &Of, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let group = Self { $($field: Field::read(&of!($field $($label)?; ; $($limit)?), from)?,)* };
                $($check(&group)?;)?
                Ok(group)
            }

            #[cfg(test)]
            fn describe(_of: &Of, table: &mut Table) {
                $(<$ty>::describe(&of!($field $($label)?; $($about)*; $($limit)?), table);)*
            }

            #[cfg(test)]
            fn any(_of: &Of) -> BoxedStrategy<Self> {
                let fields = ($(<$ty>::any(&of!($field; ; $($limit)?)),)*);
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
/// NAME = type [, version header version] [, needs capability] [, reply NAME]: Variant [(name "label": Type [limit])]
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
            $(($inner:ident $($label:literal)?: $of:ty $([$within:expr])?))?
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
                        $($inner.write(&of!($inner; ; $($within)?), &mut to);)?
                        $($($field.write(&of!($field; ; $($limit)?), &mut to);)*)?
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
                let (mut from, kind, seq) = open(datagram, version, $seqs)?;
                let message = match kind {
                    $($number => Self::$variant
                        $((<$of>::read(&of!($inner $($label)?; ; $($within)?), &mut from)?))?
                        $({ $($field: Field::read(&of!($field; ; $($limit)?), &mut from)?),* })?,)*
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
                    $(<$of>::describe(&of!($inner $($label)?; "n"; $($within)?), table);)?
                    $($(<$ty>::describe(&of!($field; $($about)*; $($limit)?), table);)*)?
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
                        $(<$of>::any(&of!($inner; ; $($within)?)),)?
                        $($(<$ty>::any(&of!($field; ; $($limit)?)),)*)?
                    );
                    let message = |((), $($inner,)? $($($field,)*)?)| Self::$variant $(($inner))? $({ $($field),* })?;
                    fields.prop_map(message).boxed()
                }),*];
                proptest::strategy::Union::new(all).boxed()
            }
        }
    };
}

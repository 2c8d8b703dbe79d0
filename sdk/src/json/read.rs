//! Reads JSON into whatever serde asks for.

use super::Error;
use crate::text::decimal;
use serde::de::value::StringDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use std::borrow::Cow;

/// As deep as serde_json goes; deeper would end the stack.
const DEPTH_MAX: u8 = 128;

/// Reads one value that fills the whole text.
pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    let mut reader = Reader {
        text,
        at: 0,
        depth: 0,
    };
    let value = T::deserialize(&mut reader).map_err(|error| reader.placed(error))?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.placed(reader.wants("the end"))),
    }
}

struct Reader<'de> {
    text: &'de [u8],
    at: usize,
    depth: u8,
}

impl<'de> Reader<'de> {
    /// The first byte of what comes next.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    #[inline(never)]
    fn wants(&self, what: &str) -> Error {
        Error::new(&["expected ", what])
    }

    fn placed(&self, error: Error) -> Error {
        Error::new(&[&error.0, " at byte ", &decimal(self.at as u64)])
    }

    fn token(&mut self, token: u8, name: &str) -> Result<(), Error> {
        if self.peek() == Some(token) {
            self.at += 1;
            return Ok(());
        }
        Err(self.wants(name))
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.wants(word));
        }
        self.at += word.len();
        Ok(())
    }

    fn open(&mut self) -> Result<(), Error> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            Err(Error::new(&["the value is nested too deep"]))
        } else {
            Ok(())
        }
    }

    fn close(&mut self, token: u8, name: &str) -> Result<(), Error> {
        self.depth -= 1;
        self.token(token, name)
    }

    /// The next string, borrowed where it has no escapes.
    fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        self.token(b'"', "a string")?;
        let mut made: Option<Vec<u8>> = None;
        let mut start = self.at;
        loop {
            match self.text.get(self.at) {
                Some(b'"') => {
                    let piece = self.since(start);
                    let text = match made {
                        None => std::str::from_utf8(piece).ok().map(Cow::Borrowed),
                        Some(mut made) => {
                            made.extend_from_slice(piece);
                            String::from_utf8(made).ok().map(Cow::Owned)
                        }
                    };
                    self.at += 1;
                    return text.ok_or_else(|| self.wants("UTF-8"));
                }
                Some(b'\\') => {
                    let made = made.get_or_insert_default();
                    made.extend_from_slice(self.since(start));
                    self.at += 1;
                    let letter = self.escape()?;
                    made.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                    start = self.at;
                }
                Some(byte) if *byte >= b' ' => self.at += 1,
                _ => return Err(self.wants("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Error> {
        let byte = self.text.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.four()?;
                let code = if (0xd800..0xdc00).contains(&first) {
                    self.word("\\u")?;
                    let second = self.four()?;
                    if !(0xdc00..0xe000).contains(&second) {
                        return Err(self.wants("a surrogate pair"));
                    }
                    0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                } else {
                    first
                };
                char::from_u32(code).ok_or_else(|| self.wants("a surrogate pair"))?
            }
            _ => return Err(self.wants("an escape")),
        })
    }

    fn four(&mut self) -> Result<u32, Error> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self
                .text
                .get(self.at)
                .and_then(|byte| char::from(*byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.wants("four hexadecimal digits"))?;
            self.at += 1;
        }
        Ok(code)
    }

    /// The next number as it is written, and whether it is whole.
    fn number(&mut self) -> Result<(&'de str, bool), Error> {
        let start = self.at;
        self.skip(b"-");
        let digits = self.at;
        let mut is_right =
            self.digits() && (self.at == digits + 1 || self.text.get(digits) != Some(&b'0'));
        let mut is_whole = true;
        if self.skip(b".") {
            is_whole = false;
            is_right &= self.digits();
        }
        if self.skip(b"eE") {
            is_whole = false;
            self.skip(b"+-");
            is_right &= self.digits();
        }
        match std::str::from_utf8(self.since(start)) {
            Ok(text) if is_right => Ok((text, is_whole)),
            _ => Err(self.wants("a number")),
        }
    }

    /// What was stepped over since `start`; without the code of a panic that cannot happen.
    fn since(&self, start: usize) -> &'de [u8] {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn skip(&mut self, any: &[u8]) -> bool {
        let is_one = self
            .text
            .get(self.at)
            .is_some_and(|byte| any.contains(byte));
        self.at += usize::from(is_one);
        is_one
    }

    fn digits(&mut self) -> bool {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.at > start
    }

    /// The text of a whole number, if one comes next.
    fn whole(&mut self) -> Result<Option<&'de str>, Error> {
        if !matches!(self.peek(), Some(b'-' | b'0'..=b'9')) {
            return Ok(None);
        }
        let (text, is_whole) = self.number()?;
        Ok(is_whole.then_some(text))
    }

    /// Steps over a value.
    fn pass(&mut self) -> Result<(), Error> {
        match self.peek() {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(b'[') => {
                self.open()?;
                let mut is_first = true;
                while self.more(b']', "`,` or `]`", &mut is_first)? {
                    self.pass()?;
                }
                self.close(b']', "`]`")
            }
            Some(b'{') => {
                self.open()?;
                let mut is_first = true;
                while self.more(b'}', "`,` or `}`", &mut is_first)? {
                    self.key()?;
                    self.pass()?;
                }
                self.close(b'}', "`}`")
            }
            _ => Err(self.wants("a value")),
        }
    }

    /// Goes to the next element; false at the end of the list, which is left to `close`.
    fn more(&mut self, end: u8, names: &str, is_first: &mut bool) -> Result<bool, Error> {
        let next = self.peek();
        if next == Some(end) {
            return Ok(false);
        }
        if *is_first {
            *is_first = false;
            return if next.is_some() {
                Ok(true)
            } else {
                Err(self.wants(names))
            };
        }
        self.token(b',', names)?;
        if self.peek() == Some(end) {
            Err(self.wants("a value"))
        } else {
            Ok(true)
        }
    }

    fn key(&mut self) -> Result<Cow<'de, str>, Error> {
        self.peek();
        let key = self.string()?;
        self.token(b':', "`:`")?;
        Ok(key)
    }

    fn list<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.open()?;
        let value = visitor.visit_seq(List {
            reader: self,
            is_first: true,
        })?;
        self.close(b']', "`]`")?;
        Ok(value)
    }

    fn object<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.open()?;
        let value = visitor.visit_map(List {
            reader: self,
            is_first: true,
        })?;
        self.close(b'}', "`}`")?;
        Ok(value)
    }
}

fn unexpected<'de, T>(visitor: &impl Visitor<'de>) -> Result<T, Error> {
    Err(de::Error::invalid_type(de::Unexpected::Unit, visitor))
}

fn spoken<'de, V: Visitor<'de>>(text: Cow<'de, str>, visitor: V) -> Result<V::Value, Error> {
    match text {
        Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
        Cow::Owned(text) => visitor.visit_string(text),
    }
}

fn out_of_range<'de, V: Visitor<'de>>(visitor: &V) -> Error {
    de::Error::invalid_value(de::Unexpected::Unit, visitor)
}

/// Whole numbers, by the narrowest visit that every integer visitor knows.
macro_rules! integers {
    ($($method:ident $visit:ident $of:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.whole()? {
                None => unexpected(&visitor),
                Some(text) => match text.parse::<$of>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(out_of_range(&visitor)),
                },
            }
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'n') => self.word("null").and_then(|()| visitor.visit_unit()),
            Some(b't') => self.word("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.word("false").and_then(|()| visitor.visit_bool(false)),
            Some(b'"') => spoken(self.string()?, visitor),
            Some(b'[') => self.list(visitor),
            Some(b'{') => self.object(visitor),
            Some(b'-' | b'0'..=b'9') => {
                let (text, is_whole) = self.number()?;
                if is_whole {
                    if let Ok(number) = text.parse::<u64>() {
                        return visitor.visit_u64(number);
                    }
                    if let Ok(number) = text.parse::<i64>() {
                        return visitor.visit_i64(number);
                    }
                }
                visitor.visit_f64(float(text)?)
            }
            _ => Err(self.wants("a value")),
        }
    }

    integers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_u128 visit_u128 u128;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_i128 visit_i128 i128;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            // Read as a double and cut to a single it would be rounded twice.
            Some(b'-' | b'0'..=b'9') => match self.number()?.0.parse::<f32>() {
                Ok(number) if number.is_finite() => visitor.visit_f32(number),
                _ => Err(too_large()),
            },
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => visitor.visit_f64(float(self.number()?.0)?),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b't') => self.word("true").and_then(|()| visitor.visit_bool(true)),
            Some(b'f') => self.word("false").and_then(|()| visitor.visit_bool(false)),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'"') => spoken(self.string()?, visitor),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'[') => self.list(visitor),
            Some(b'"') => visitor.visit_byte_buf(self.string()?.into_owned().into_bytes()),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'n') => self.word("null").and_then(|()| visitor.visit_unit()),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'n') => self.word("null").and_then(|()| visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'[') => self.list(visitor),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'{') => self.object(visitor),
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'"') => visitor.visit_enum(Unit(self.string()?)),
            Some(b'{') => {
                self.open()?;
                let value = visitor.visit_enum(Tagged(self))?;
                self.close(b'}', "`}`")?;
                Ok(value)
            }
            _ => unexpected(&visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.pass()?;
        visitor.visit_unit()
    }
}

fn float(text: &str) -> Result<f64, Error> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(too_large()),
    }
}

fn too_large() -> Error {
    Error::new(&["the number is out of range"])
}

/// The elements of an array or the entries of an object.
struct List<'a, 'de> {
    reader: &'a mut Reader<'de>,
    is_first: bool,
}

impl<'de> de::SeqAccess<'de> for List<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if !self.reader.more(b']', "`,` or `]`", &mut self.is_first)? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }
}

impl<'de> de::MapAccess<'de> for List<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        if !self.reader.more(b'}', "`,` or `}`", &mut self.is_first)? {
            return Ok(None);
        }
        seed.deserialize(Key(self.reader.key()?)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}

/// A key: a string, or whatever was written as one.
struct Key<'de>(Cow<'de, str>);

macro_rules! parsed {
    ($($method:ident $visit:ident $of:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.0.parse::<$of>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => unexpected(&visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        spoken(self.0, visitor)
    }

    parsed! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_u128 visit_u128 u128;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_i128 visit_i128 i128;
        deserialize_bool visit_bool bool;
        deserialize_f32 visit_f32 f32;
        deserialize_f64 visit_f64 f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Unit(self.0))
    }

    forward_to_deserialize_any! {
        char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// A variant without content.
struct Unit<'de>(Cow<'de, str>);

impl<'de> de::EnumAccess<'de> for Unit<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StringDeserializer<Error> = self.0.into_owned().into_deserializer();
        Ok((seed.deserialize(name)?, Self(Cow::Borrowed(""))))
    }
}

impl<'de> de::VariantAccess<'de> for Unit<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(Error::new(&["expected a variant with a value"]))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        unexpected(&visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        unexpected(&visitor)
    }
}

/// A variant with content: an object of one entry.
struct Tagged<'a, 'de>(&'a mut Reader<'de>);

impl<'de> de::EnumAccess<'de> for Tagged<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let variant = seed.deserialize(Key(self.0.key()?))?;
        Ok((variant, self))
    }
}

impl<'de> de::VariantAccess<'de> for Tagged<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        self.0.peek();
        self.0.word("null")
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_map(visitor)
    }
}

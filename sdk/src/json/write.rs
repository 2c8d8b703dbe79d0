//! Writes whatever serde hands over as JSON, without spaces.

use super::Error;
use serde::ser::{self, Serialize, Serializer};

/// Writes one value.
pub(crate) fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    value.serialize(Writer {
        text: &mut text,
        is_key: false,
    })?;
    Ok(text)
}

/// Writes the next value; a key is written as a string.
struct Writer<'a> {
    text: &'a mut Vec<u8>,
    is_key: bool,
}

impl<'a> Writer<'a> {
    fn plain(self, word: &str) -> Result<(), Error> {
        if self.is_key {
            self.text.push(b'"');
        }
        self.text.extend_from_slice(word.as_bytes());
        if self.is_key {
            self.text.push(b'"');
        }
        Ok(())
    }

    fn open(self, token: u8, end: &'static str) -> Result<List<'a>, Error> {
        if self.is_key {
            return Err(Error::new(&["a key has to be a string or a number"]));
        }
        self.text.push(token);
        Ok(List {
            text: self.text,
            is_first: true,
            end,
        })
    }

    /// `{"variant":` before the content of a variant.
    fn tag(self, variant: &str) -> Result<Self, Error> {
        if self.is_key {
            return Err(Error::new(&["a key has to be a string or a number"]));
        }
        self.text.push(b'{');
        string(self.text, variant);
        self.text.push(b':');
        Ok(self)
    }
}

fn string(text: &mut Vec<u8>, value: &str) {
    text.push(b'"');
    for byte in value.bytes() {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x8 => b'b',
            0xc => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0..=0x1f => {
                text.extend_from_slice(b"\\u00");
                text.push(b'0' + (byte >> 4));
                text.push(b"0123456789abcdef"[usize::from(byte & 15)]);
                continue;
            }
            plain => {
                text.push(plain);
                continue;
            }
        };
        text.extend_from_slice(&[b'\\', short]);
    }
    text.push(b'"');
}

macro_rules! integers {
    ($($method:ident $of:ty;)*) => {
        $(fn $method(self, value: $of) -> Result<(), Error> {
            self.plain(&value.to_string())
        })*
    };
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = List<'a>;
    type SerializeMap = List<'a>;
    type SerializeStruct = List<'a>;
    type SerializeStructVariant = List<'a>;

    integers! {
        serialize_u8 u8;
        serialize_u16 u16;
        serialize_u32 u32;
        serialize_u64 u64;
        serialize_u128 u128;
        serialize_i8 i8;
        serialize_i16 i16;
        serialize_i32 i32;
        serialize_i64 i64;
        serialize_i128 i128;
    }

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.plain(if value { "true" } else { "false" })
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        if value.is_finite() {
            self.plain(&format!("{value:?}"))
        } else {
            self.serialize_unit()
        }
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        if value.is_finite() {
            self.plain(&format!("{value:?}"))
        } else {
            self.serialize_unit()
        }
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        string(self.text, value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.collect_seq(value)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        if self.is_key {
            return Err(Error::new(&["a key has to be a string or a number"]));
        }
        self.plain("null")
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let writer = self.tag(variant)?;
        value.serialize(Writer {
            text: writer.text,
            is_key: false,
        })?;
        writer.text.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List<'a>, Error> {
        self.open(b'[', "]")
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'a>, Error> {
        self.open(b'[', "]")
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'a>, Error> {
        self.open(b'[', "]")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List<'a>, Error> {
        self.tag(variant)?.open(b'[', "]}")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<List<'a>, Error> {
        self.open(b'{', "}")
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<List<'a>, Error> {
        self.open(b'{', "}")
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List<'a>, Error> {
        self.tag(variant)?.open(b'{', "}}")
    }
}

/// An array or an object that is still open.
struct List<'a> {
    text: &'a mut Vec<u8>,
    is_first: bool,
    end: &'static str,
}

impl List<'_> {
    fn next(&mut self) -> Writer<'_> {
        if !self.is_first {
            self.text.push(b',');
        }
        self.is_first = false;
        Writer {
            text: self.text,
            is_key: false,
        }
    }

    fn entry<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), Error> {
        let writer = self.next();
        string(writer.text, key);
        writer.text.push(b':');
        value.serialize(writer)
    }

    fn finish(self) -> Result<(), Error> {
        self.text.extend_from_slice(self.end.as_bytes());
        Ok(())
    }
}

macro_rules! lists {
    ($($of:ident $method:ident;)*) => {
        $(impl ser::$of for List<'_> {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                value.serialize(self.next())
            }

            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        })*
    };
}

lists! {
    SerializeSeq serialize_element;
    SerializeTuple serialize_element;
    SerializeTupleStruct serialize_field;
    SerializeTupleVariant serialize_field;
}

macro_rules! objects {
    ($($of:ident)*) => {
        $(impl ser::$of for List<'_> {
            type Ok = ();
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
                self.entry(key, value)
            }

            fn end(self) -> Result<(), Error> {
                self.finish()
            }
        })*
    };
}

objects!(SerializeStruct SerializeStructVariant);

impl ser::SerializeMap for List<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let writer = self.next();
        key.serialize(Writer {
            is_key: true,
            ..writer
        })
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.text.push(b':');
        value.serialize(Writer {
            text: self.text,
            is_key: false,
        })
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

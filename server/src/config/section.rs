//! How one table of the configuration describes itself.
//!
//! A [`section!`] is a plain serde struct whose doc comments, field names and defaults are also
//! data: `config init` prints them, an environment variable is found by them, and an unknown key
//! is compared with them. So nothing is written down twice.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{ByteSize, Duration};

/// One key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
}

/// One table of the configuration file, by the names of its fields.
pub trait Section {
    fn fields(&self) -> &'static [Field];

    /// The value of `field` as TOML; nothing when the field is unset or unknown.
    fn get(&self, field: &str) -> Option<String>;

    /// Reads `field` from `text`, as an environment variable or a flag gives it. The error says
    /// what was expected.
    fn set(&mut self, field: &str, text: &str) -> Result<(), String>;
}

/// A value that one configuration key can hold.
pub(super) trait Setting: Sized {
    /// From an environment variable or a flag.
    fn from_text(text: &str) -> Result<Self, String>;

    /// As a TOML value, or nothing when it is unset.
    fn to_toml(&self) -> Option<String>;
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

macro_rules! parsed_setting {
    ($($ty:ty: $expected:literal),* $(,)?) => {$(
        impl Setting for $ty {
            fn from_text(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| format!("expected {}, found {text:?}", $expected))
            }

            fn to_toml(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )*};
}

parsed_setting! {
    u16: "a number from 0 to 65535",
    u32: "a whole number",
    bool: "true or false",
}

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(self))
    }
}

impl Setting for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string_lossy()))
    }
}

impl Setting for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .map_err(|_| format!("expected an address like 127.0.0.1:7400, found {text:?}"))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Setting for ByteSize {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: super::bytesize::ParseError| error.to_string())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

impl Setting for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: super::duration::ParseError| error.to_string())
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// Unset is an absent key in the file, and the empty text elsewhere.
impl<T: Setting> Setting for Option<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(None);
        }
        T::from_text(text).map(Some)
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(Setting::to_toml)
    }
}

/// An array in the file, separated by commas elsewhere.
impl<T: Setting> Setting for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(T::from_text)
            .collect()
    }

    fn to_toml(&self) -> Option<String> {
        let items: Vec<String> = self.iter().filter_map(Setting::to_toml).collect();
        Some(format!("[{}]", items.join(", ")))
    }
}

/// Declares a section: a struct, its default and its description.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident : $ty:ty = $default:expr, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $crate::config::section::Section for $name {
            fn fields(&self) -> &'static [$crate::config::section::Field] {
                &[$( $crate::config::section::Field {
                    name: stringify!($field),
                    doc: &[$($doc),+],
                } ),+]
            }

            fn get(&self, field: &str) -> Option<String> {
                match field {
                    $( stringify!($field) => {
                        $crate::config::section::Setting::to_toml(&self.$field)
                    } )+
                    _ => None,
                }
            }

            fn set(&mut self, field: &str, text: &str) -> Result<(), String> {
                match field {
                    $( stringify!($field) => {
                        self.$field = $crate::config::section::Setting::from_text(text)?;
                    } )+
                    _ => return Err(format!("there is no {field} here")),
                }
                Ok(())
            }
        }
    };
}

pub(super) use section;

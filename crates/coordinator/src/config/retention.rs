//! How much of what is over the state folder keeps.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

use super::ConfigError;

/// How many of something are kept: the newest ones, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing is deleted; `"all"` in the file.
    All,
    /// So many of the newest; 0: none but those that something needs.
    Newest(u64),
}

impl Keep {
    /// How many; `None`: all.
    pub fn newest(self) -> Option<u64> {
        if let Self::Newest(count) = self { Some(count) } else { None }
    }

    /// Whether version `version` is kept when `current` is the newest one.
    pub fn keeps(self, version: u64, current: u64) -> bool {
        self.newest().is_none_or(|count| version.saturating_add(count) > current)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "all"),
            Self::Newest(count) => write!(f, "{count}"),
        }
    }
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeepVisitor;
        impl Visitor<'_> for KeepVisitor {
            type Value = Keep;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 0, or \"all\"")
            }

            fn visit_i64<E: Error>(self, count: i64) -> Result<Keep, E> {
                let negative = |_| E::invalid_value(Unexpected::Signed(count), &self);
                u64::try_from(count).map(Keep::Newest).map_err(negative)
            }

            fn visit_u64<E: Error>(self, count: u64) -> Result<Keep, E> {
                Ok(Keep::Newest(count))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Keep, E> {
                if text == "all" { Ok(Keep::All) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }
        }
        deserializer.deserialize_any(KeepVisitor)
    }
}

/// What is kept of a task when it is over, beside what something still needs: the current version of the model with its
/// moments, the base of an open round, versions that a release names, and the newest successful round.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Versions of the model, the current one among them.
    pub models: Keep,
    /// Versions of the server optimiser's moments, which lie beside the model; at most as many as `models`.
    pub moments: Keep,
    /// Records of rounds whose sums were learned, with their metrics.
    pub finished_rounds: Keep,
    /// Records of rounds that were aborted, with the reason.
    pub aborted_rounds: Keep,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            models: Keep::Newest(10),
            moments: Keep::Newest(1),
            finished_rounds: Keep::Newest(1000),
            aborted_rounds: Keep::Newest(1000),
        }
    }
}

impl Retention {
    /// The first setting that does not fit the others.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Some(models) = self.models.newest() else { return Ok(()) };
        // The current version is kept in any case, with its moments.
        let fits = self.moments.newest().is_some_and(|moments| moments <= models.max(1));
        if fits {
            return Ok(());
        }
        let (got, most) = (self.moments.to_string(), models.max(1));
        let allowed = format!("0 to {most}: moments are kept beside their model, and retention.models is {models}");
        Err(ConfigError::Setting { setting: "retention.moments", got, allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Retention, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_all_are_read_and_the_rest_is_refused() {
        assert_eq!(read("").unwrap(), Retention::default());
        let read_some = read("models = 3\nmoments = 0\nfinished_rounds = \"all\"").unwrap();
        let expected = Retention {
            models: Keep::Newest(3),
            moments: Keep::Newest(0),
            finished_rounds: Keep::All,
            ..Retention::default()
        };
        assert_eq!(read_some, expected);
        for wrong in ["models = -1", "models = \"ever\"", "models = 1.5", "models = true"] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("a number from 0, or \"all\""), "{wrong}: {error}");
        }
        assert!(read("model = 3").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn moments_are_not_kept_longer_than_their_models() {
        let with = |models, moments| Retention { models, moments, ..Retention::default() }.check();
        let n = Keep::Newest;
        for (models, moments) in [(n(0), n(1)), (n(3), n(3)), (Keep::All, n(9)), (Keep::All, Keep::All), (n(9), n(0))] {
            assert!(with(models, moments).is_ok(), "{models} {moments}");
        }
        for (models, moments) in [(n(0), n(2)), (n(3), n(4)), (n(3), Keep::All)] {
            let error = with(models, moments).unwrap_err();
            assert_eq!(error.setting(), Some("retention.moments"));
            assert!(error.to_string().contains(&format!("retention.models is {models}")), "{error}");
        }
        assert!(Retention::default().check().is_ok());
    }

    #[test]
    fn the_newest_versions_are_kept() {
        let kept = |keep: Keep| (0..=5).filter(|&version| keep.keeps(version, 5)).collect::<Vec<_>>();
        assert_eq!(kept(Keep::Newest(2)), [4, 5]);
        assert_eq!(kept(Keep::Newest(0)), [0u64; 0]);
        assert_eq!(kept(Keep::Newest(u64::MAX)).len(), 6);
        assert_eq!(kept(Keep::All).len(), 6);
    }
}

//! How large contents are: one size, a range, a weighted list, or a log-normal distribution.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use rand::Rng;
use rand_distr::{Distribution, LogNormal, weighted::WeightedIndex};
use serde::{Serialize, Serializer};

/// No content is larger: 1 GiB.
const SIZE_MAX: u64 = 1 << 30;

/// The sizes of contents, octets.
#[derive(Clone, Debug, PartialEq)]
pub enum Sizes {
    /// Each the same: `4KiB`.
    Fixed(usize),
    /// Each as likely, bounds included: `1KiB..64KiB`.
    Range(usize, usize),
    /// By weight: `4KiB*90,1MiB*10`.
    Weighted(Vec<(usize, f64)>),
    /// Log-normal, by its median and the deviation of the logarithm, none above `max`: `lognormal:20KiB:1.5:50MiB`.
    LogNormal {
        /// Half are smaller.
        median: usize,
        /// Deviation of the natural logarithm.
        sigma: f64,
        /// Larger ones are cut to this.
        max: usize,
    },
}

/// What is wrong with a word for sizes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No size.
    #[error("{0:?} is no size: octets, or with a unit as 4KiB or 10MB")]
    NotASize(String),
    /// Too large.
    #[error("{0} is above the largest content, 1GiB")]
    TooLarge(String),
    /// One octet.
    #[error("a content is empty or ends with CRLF: its size is 0, or 2 and more")]
    One,
    /// A range the wrong way round.
    #[error("the range {0} ends before it begins")]
    Backwards(String),
    /// No weight.
    #[error("{0:?} has no weight above 0")]
    Weight(String),
    /// No log-normal distribution.
    #[error("{0:?} is not lognormal:MEDIAN:SIGMA or lognormal:MEDIAN:SIGMA:MAX")]
    LogNormal(String),
}

impl FromStr for Sizes {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        if let Some(rest) = text.strip_prefix("lognormal:") {
            return log_normal(rest);
        }
        if text.contains('*') {
            return text.split(',').map(weighted).collect::<Result<_, _>>().map(Sizes::Weighted);
        }
        if let Some((from, to)) = text.split_once("..") {
            let (from, to) = (size(from)?, size(to)?);
            return match from {
                _ if from > to => Err(SizeError::Backwards(text.to_owned())),
                _ => Ok(Sizes::Range(from, to)),
            };
        }
        size(text).map(Sizes::Fixed)
    }
}

fn size(text: &str) -> Result<usize, SizeError> {
    let size: ByteSize = text.trim().parse().map_err(|_| SizeError::NotASize(text.to_owned()))?;
    match size.0 {
        1 => Err(SizeError::One),
        octets if octets > SIZE_MAX => Err(SizeError::TooLarge(text.to_owned())),
        octets => Ok(octets as usize),
    }
}

fn weighted(text: &str) -> Result<(usize, f64), SizeError> {
    let (octets, weight) = text.split_once('*').ok_or_else(|| SizeError::Weight(text.to_owned()))?;
    let weight = weight.trim().parse().ok().filter(|weight: &f64| *weight > 0.0 && weight.is_finite());
    Ok((size(octets)?, weight.ok_or_else(|| SizeError::Weight(text.to_owned()))?))
}

fn log_normal(text: &str) -> Result<Sizes, SizeError> {
    let fault = || SizeError::LogNormal(format!("lognormal:{text}"));
    let words: Vec<&str> = text.split(':').collect();
    let (median, sigma, max) = match words[..] {
        [median, sigma] => (size(median)?, sigma, SIZE_MAX as usize),
        [median, sigma, max] => (size(median)?, sigma, size(max)?),
        _ => return Err(fault()),
    };
    let sigma = sigma.parse().ok().filter(|sigma: &f64| (0.0..=10.0).contains(sigma)).ok_or_else(fault)?;
    if median < 2 || max < median {
        return Err(fault());
    }
    Ok(Sizes::LogNormal { median, sigma, max })
}

impl Sizes {
    /// Sizes that stand for the distribution: one if there is only one, `count` drawn by `random` otherwise.
    pub fn sample(&self, count: usize, random: &mut impl Rng) -> Vec<usize> {
        let drawn = |mut draw: Box<dyn FnMut() -> usize + '_>| -> Vec<usize> {
            (0..count).map(|_| draw()).map(|size| if size == 1 { 2 } else { size }).collect()
        };
        match self {
            Sizes::Fixed(size) => vec![*size],
            Sizes::Range(from, to) => drawn(Box::new(|| random.random_range(*from..=*to))),
            Sizes::Weighted(sizes) => {
                let index =
                    WeightedIndex::new(sizes.iter().map(|(_, weight)| *weight)).expect("weights above 0");
                drawn(Box::new(|| sizes[index.sample(random)].0))
            }
            Sizes::LogNormal { median, sigma, max } => {
                let curve = LogNormal::new((*median as f64).ln(), *sigma).expect("a finite deviation");
                drawn(Box::new(|| (curve.sample(random) as usize).clamp(2, *max)))
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(size) => write!(f, "{size}"),
            Sizes::Range(from, to) => write!(f, "{from}..{to}"),
            Sizes::Weighted(sizes) => {
                let words: Vec<String> =
                    sizes.iter().map(|(size, weight)| format!("{size}*{weight}")).collect();
                f.write_str(&words.join(","))
            }
            Sizes::LogNormal { median, sigma, max } => write!(f, "lognormal:{median}:{sigma}:{max}"),
        }
    }
}

impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn words_for_sizes() {
        let table: [(&str, Result<Sizes, SizeError>); 11] = [
            ("0", Ok(Sizes::Fixed(0))),
            ("4KiB", Ok(Sizes::Fixed(4096))),
            ("10MB", Ok(Sizes::Fixed(10_000_000))),
            ("1KiB..4KiB", Ok(Sizes::Range(1024, 4096))),
            ("4KiB*90,1MiB*10", Ok(Sizes::Weighted(vec![(4096, 90.0), (1 << 20, 10.0)]))),
            ("lognormal:20KiB:1.5:1MiB", Ok(Sizes::LogNormal { median: 20480, sigma: 1.5, max: 1 << 20 })),
            ("1", Err(SizeError::One)),
            ("2GiB", Err(SizeError::TooLarge("2GiB".into()))),
            ("4..2", Err(SizeError::Backwards("4..2".into()))),
            ("4*0", Err(SizeError::Weight("4*0".into()))),
            ("much", Err(SizeError::NotASize("much".into()))),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Sizes>(), expected, "{text}");
        }
    }

    #[test]
    fn a_sample_stands_for_its_distribution() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut sample = |text: &str| {
            let mut sample = text.parse::<Sizes>().unwrap().sample(1001, &mut random);
            sample.sort();
            sample
        };
        assert_eq!(sample("4KiB"), [4096]);
        let range = sample("100..300");
        assert!(range[0] >= 100 && range[1000] <= 300 && (180..220).contains(&range[500]));
        let weighted = sample("10*3,20*1");
        let small = weighted.iter().filter(|size| **size == 10).count();
        assert!((680..820).contains(&small), "{small}");
        let curve = sample("lognormal:20000:1:100000");
        assert!((17_000..23_000).contains(&curve[500]), "{}", curve[500]);
        assert!(curve[1000] <= 100_000);
    }
}

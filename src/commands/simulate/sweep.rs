//! The grid of a sweep: every combination of the values of its axes.

use std::str::FromStr;

use clap::ValueEnum;

use super::Mode;

/// The settings that a sweep may vary.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub clients: u32,
    pub dim: u64,
    pub bits: u32,
    pub mode: Mode,
    pub dropout: String,
}

/// One varied setting.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    name: Name,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Clients,
    Dim,
    Bits,
    Mode,
    Dropout,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("an axis is NAME=V1,V2,..")?;
        let name = match name.trim() {
            "n" | "clients" => Name::Clients,
            "d" | "dim" => Name::Dim,
            "bits" => Name::Bits,
            "mode" => Name::Mode,
            "dropout" => Name::Dropout,
            other => return Err(format!("{other:?} can't be swept; n, dim, bits, mode and dropout can")),
        };
        let axis = Self { name, values: values.split(',').map(|value| value.trim().to_owned()).collect() };
        // Wrong values are told with the option that holds them.
        let mut probe = Point { clients: 0, dim: 0, bits: 0, mode: Mode::Malicious, dropout: String::new() };
        axis.values.iter().try_for_each(|value| axis.set(&mut probe, value))?;
        Ok(axis)
    }
}

impl Axis {
    fn set(&self, point: &mut Point, value: &str) -> Result<(), String> {
        match self.name {
            Name::Clients => point.clients = count(value)?,
            Name::Dim => point.dim = whole(value)?,
            Name::Bits => point.bits = count(value)?,
            Name::Mode => point.mode = Mode::from_str(value, true)?,
            Name::Dropout => point.dropout = value.to_owned(),
        }
        Ok(())
    }
}

/// A whole number; 1e6 is how people write a dimension.
pub(super) fn whole(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.fract() == 0.0 && x < 9e15 => Ok(x as u64),
        _ => Err(format!("{text:?} is no whole number")),
    }
}

/// A whole number that fits into 32 bits.
pub(super) fn count(text: &str) -> Result<u32, String> {
    u32::try_from(whole(text)?).map_err(|_| format!("{text} is too large; at most {} is possible", u32::MAX))
}

/// Every combination, the last axis varying fastest.
pub(super) fn grid(axes: &[Axis], base: Point) -> anyhow::Result<Vec<Point>> {
    let mut points = vec![base];
    for (i, axis) in axes.iter().enumerate() {
        let twice = axes[..i].iter().any(|other| other.name == axis.name);
        anyhow::ensure!(!twice, "{:?} is swept twice: give all its values in one --sweep", axis.name);
        let mut next = Vec::with_capacity(points.len() * axis.values.len());
        for point in &points {
            for value in &axis.values {
                let mut point = point.clone();
                axis.set(&mut point, value).map_err(anyhow::Error::msg)?;
                next.push(point);
            }
        }
        points = next;
    }
    if let Some((_, point)) = points.iter().enumerate().find(|(i, point)| points[..*i].contains(point)) {
        anyhow::bail!("a sweep has a value twice: {point:?}");
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_every_combination_once() {
        let base = Point { clients: 5, dim: 6, bits: 16, mode: Mode::Malicious, dropout: "0".into() };
        let axes: Vec<Axis> = ["n=100,300", "dim=1e4,1e5,1e6"].map(|text| text.parse().unwrap()).into();
        let points = grid(&axes, base.clone()).unwrap();
        let pairs: Vec<(u32, u64)> = points.iter().map(|point| (point.clients, point.dim)).collect();
        assert_eq!(
            pairs,
            [(100, 10_000), (100, 100_000), (100, 1_000_000), (300, 10_000), (300, 100_000), (300, 1_000_000)]
        );
        assert_eq!(grid(&[], base.clone()).unwrap(), std::slice::from_ref(&base));
        assert!(grid(&[axes[0].clone(), axes[0].clone()], base.clone()).is_err());
        assert!(grid(&["n=1000,300,1e3".parse().unwrap()], base).is_err());
    }

    #[test]
    fn what_can_not_be_swept_is_named() {
        for (text, word) in
            [("n", "NAME="), ("gamma=1", "gamma"), ("n=x", "x"), ("n=1.5", "1.5"), ("mode=kind", "kind")]
        {
            let error = text.parse::<Axis>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}

//! Medians and ratios, which are medians of the ratios of each round.

/// Which way a figure is better, and so which way its ratio is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times and counts.
    Lower,
    /// Rates.
    Higher,
}

/// What was measured of one contestant, a value a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle value, or the mean of the middle two.
    ///
    /// # Panics
    ///
    /// Without a sample.
    pub(crate) fn median(&self) -> f64 {
        assert!(!self.0.is_empty(), "no round was measured");
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    /// The width of the middle half of the values, as a part of the median: how noisy the machine
    /// was. 0 if it has none.
    pub(crate) fn spread(&self) -> f64 {
        let sorted = self.sorted();
        let quarter = sorted.len() / 4;
        let width = sorted[sorted.len() - 1 - quarter] - sorted[quarter];
        // Also where all are 0, of which nothing is a part.
        if width == 0.0 {
            0.0
        } else {
            width / self.median()
        }
    }

    /// Ours to theirs, round by round, and of that the median: the sides took turns, so that a round
    /// of one and a round of the other saw the same of a machine that is now fast and now slow.
    ///
    /// # Panics
    ///
    /// Without a sample, or with more of one side than of the other.
    pub(crate) fn ratio(&self, better: Better, theirs: &Samples) -> f64 {
        assert_eq!(self.0.len(), theirs.0.len(), "the sides take turns");
        let rounds = self.0.iter().zip(&theirs.0);
        rounds
            .map(|(&ours, &theirs)| ratio(better, ours, theirs))
            .collect::<Samples>()
            .median()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Ours against theirs, so that below 1 is always better. Two nothings, as of allocations, are
/// equal.
fn ratio(better: Better, ours: f64, theirs: f64) -> f64 {
    if ours == 0.0 && theirs == 0.0 {
        return 1.0;
    }
    match better {
        Better::Lower => ours / theirs,
        Better::Higher => theirs / ours,
    }
}

/// `value` to four significant digits: more would claim what no such measurement holds.
pub(crate) fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::{Better, Samples, ratio, rounded};

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn median_of_odd_is_the_middle_whatever_the_order() {
        assert_eq!(samples(&[9.0, 1.0, 5.0]).median(), 5.0);
    }

    #[test]
    fn median_of_even_is_the_mean_of_the_middle_two() {
        assert_eq!(samples(&[9.0, 1.0, 4.0, 6.0]).median(), 5.0);
    }

    #[test]
    #[should_panic(expected = "no round was measured")]
    fn median_of_nothing_is_a_bug() {
        Samples::default().median();
    }

    #[test]
    fn ratio_is_the_median_of_the_rounds_not_of_the_sides() {
        // The machine was slow in the first two rounds; ours is always a fifth slower.
        let (ours, theirs) = (samples(&[12.0, 12.0, 6.0]), samples(&[10.0, 10.0, 5.0]));
        assert_eq!(ours.ratio(Better::Lower, &theirs), 1.2);
        assert_eq!(theirs.ratio(Better::Higher, &ours), 1.2);
    }

    #[test]
    #[should_panic(expected = "the sides take turns")]
    fn ratio_of_sides_that_did_not_take_turns_is_a_bug() {
        samples(&[1.0]).ratio(Better::Lower, &samples(&[1.0, 2.0]));
    }

    #[test]
    fn spread_is_that_of_the_middle_half_and_relative() {
        assert_eq!(samples(&[1000.0, 8.0, 10.0, 13.0, 1.0]).spread(), 0.5);
        assert_eq!(samples(&[7.0]).spread(), 0.0);
        assert_eq!(samples(&[0.0, 0.0]).spread(), 0.0);
    }

    #[test]
    fn ratio_below_one_is_better_for_times() {
        assert_eq!(ratio(Better::Lower, 2.0, 4.0), 0.5);
        assert_eq!(ratio(Better::Lower, 4.0, 2.0), 2.0);
    }

    #[test]
    fn ratio_below_one_is_better_for_rates() {
        assert_eq!(ratio(Better::Higher, 4.0, 2.0), 0.5);
        assert_eq!(ratio(Better::Higher, 2.0, 4.0), 2.0);
    }

    #[test]
    fn two_nothings_are_equal() {
        assert_eq!(ratio(Better::Lower, 0.0, 0.0), 1.0);
        assert_eq!(ratio(Better::Lower, 0.0, 2.0), 0.0);
        assert_eq!(ratio(Better::Lower, 2.0, 0.0), f64::INFINITY);
    }

    #[test]
    fn rounding_keeps_four_digits() {
        assert_eq!(rounded(123_456.0), 123_500.0);
        assert_eq!(rounded(1.234_56), 1.235);
        assert_eq!(rounded(0.001_234_56), 0.001_235);
        assert_eq!(rounded(0.0), 0.0);
    }
}

//! All ratios as one SVG: a bar a figure on a logarithmic axis that grows away from 1, better to
//! the left, with a tick where its target is. A figure without a peer, or whose limit is on its
//! value, has that in words.

use std::path::Path;

use anyhow::anyhow;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::SVGBackend;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color as _, IntoFont as _, RGBColor, ShapeStyle, TextStyle, WHITE};

use super::Figure;
use crate::stats;
use crate::targets::Of;

const ROW: i32 = 22;
const HEAD: i32 = 64;
const WIDTH: i32 = 1000;
/// Where the labels end and where the axis begins and ends.
const LABEL_END: i32 = 400;
const AXIS: (i32, i32) = (470, 940);
/// How far from 1 a value in words begins: past the number of a bar that ends there.
const WORDS: i32 = 44;
/// The axis goes from 1/16 to 16; what lies beyond is drawn at its end, with its number.
const DECADES_2: f64 = 4.0;

const BETTER: RGBColor = RGBColor(58, 134, 92);
const WORSE: RGBColor = RGBColor(190, 84, 64);
const GRID: RGBColor = RGBColor(222, 222, 222);

/// Writes the picture.
pub(super) fn draw(path: &Path, figures: &[Figure]) -> anyhow::Result<()> {
    let rows = i32::try_from(figures.len())?;
    let height = HEAD + rows * ROW + 20;
    let size = (u32::try_from(WIDTH)?, u32::try_from(height)?);
    let area = SVGBackend::new(path, size).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");
    area.fill(&WHITE).map_err(|e| failed(&e))?;

    let put = |text: String, at: (i32, i32), size: i32, h: HPos| {
        let style = TextStyle::from(("sans-serif", size).into_font())
            .color(&BLACK)
            .pos(Pos::new(h, VPos::Center));
        area.draw(&Text::new(text, at, style))
            .map_err(|e| failed(&e))
    };
    put(
        "Corio to its peers, ratio (left of 1 is better; tick: target)".to_owned(),
        (20, 20),
        18,
        HPos::Left,
    )?;
    for power in -4..=4 {
        let value = 2f64.powi(power);
        let x = position(value);
        let line = ShapeStyle::from(if power == 0 { &BLACK } else { &GRID }).stroke_width(1);
        area.draw(&PathElement::new([(x, HEAD - 8), (x, height - 14)], line))
            .map_err(|e| failed(&e))?;
        put(format!("{value}"), (x, HEAD - 18), 14, HPos::Center)?;
    }
    let mut y = HEAD;
    for figure in figures {
        let middle = y + ROW / 2;
        let label = match &figure.peer {
            Some(peer) => format!("{} to {}", figure.title(), peer.name),
            None => figure.title(),
        };
        put(label, (LABEL_END, middle), 16, HPos::Right)?;
        let ratio = figure.peer.map(|peer| peer.ratio);
        // Not a number is not drawn; nothing, and infinity, reach to the ends.
        if let Some(ratio) = ratio.filter(|ratio| *ratio >= 0.0) {
            let (x, one) = (position(ratio), position(1.0));
            let colour = if ratio < 1.0 { BETTER } else { WORSE };
            let corners = [(x.min(one), y + 4), (x.max(one), y + ROW - 4)];
            area.draw(&Rectangle::new(corners, colour.filled()))
                .map_err(|e| failed(&e))?;
            let (side, gap) = if ratio < 1.0 {
                (HPos::Right, -4)
            } else {
                (HPos::Left, 4)
            };
            put(format!("{ratio:.2}"), (x + gap, middle), 15, side)?;
        }
        match figure.target() {
            Some(target) if matches!(target.of, Of::RatioTo(_)) => {
                let x = position(target.limit.value());
                let tick = ShapeStyle::from(&BLACK).stroke_width(2);
                area.draw(&PathElement::new([(x, y + 2), (x, y + ROW - 2)], tick))
                    .map_err(|e| failed(&e))?;
            }
            None if ratio.is_some() => {}
            target => {
                let mut words = format!("{} {}", stats::rounded(figure.value), figure.unit);
                if let Some(target) = target {
                    words.push_str(&format!(" (limit {target})"));
                }
                // On the side where no bar is.
                let (side, gap) = if ratio.is_some_and(|ratio| ratio > 1.0) {
                    (HPos::Right, -WORDS)
                } else {
                    (HPos::Left, WORDS)
                };
                put(words, (position(1.0) + gap, middle), 15, side)?;
            }
        }
        y += ROW;
    }
    area.present().map_err(|e| failed(&e))
}

/// The pixel column of a ratio.
fn position(ratio: f64) -> i32 {
    let part = (ratio.log2().clamp(-DECADES_2, DECADES_2) + DECADES_2) / (2.0 * DECADES_2);
    let width = f64::from(AXIS.1 - AXIS.0);
    // In 0..=470 by the clamp above.
    #[expect(clippy::cast_possible_truncation, reason = "a pixel column")]
    let column = (part * width).round() as i32;
    AXIS.0 + column
}

#[cfg(test)]
mod tests {
    use super::{AXIS, draw, position};
    use crate::report::tests::{alone, figure};
    use crate::stats::Better;

    #[test]
    fn one_is_in_the_middle_and_the_ends_hold() {
        assert_eq!(position(1.0), i32::midpoint(AXIS.0, AXIS.1));
        assert_eq!(position(1e-9), AXIS.0);
        assert_eq!(position(1e9), AXIS.1);
        assert!(position(0.5) < position(1.0));
    }

    #[test]
    fn the_picture_names_every_figure() {
        let path = std::env::temp_dir().join(format!("bench-picture-{}.svg", std::process::id()));
        let figures = [
            figure("quick_one", Better::Lower, 1.0, 2.0),
            figure("no_ratio", Better::Lower, f64::NAN, 1.0),
            figure("nothing", Better::Lower, 0.0, 2.0),
            figure("infinite", Better::Lower, 2.0, 0.0),
            alone("million_kib", 5.25),
        ];
        draw(&path, &figures).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(svg.contains("coroutine/quick_one to corosensei"));
        for name in ["no_ratio", "nothing", "infinite", "million_kib"] {
            assert!(svg.contains(&format!("coroutine/{name}")), "{name}");
        }
        assert!(svg.contains("5.25 KiB (limit &lt;= 6 KiB)"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }
}

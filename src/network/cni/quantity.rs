//! Kubernetes quantities, as far as annotations hold them: `10M`, `1.5Gi`, `2e3`.

/// The integer value of a quantity, rounded up; None if it is none or is negative or
/// beyond what is ever sensible (10³⁰).
///
/// The form is `[+-]digits[.digits][suffix]` where the suffix is one of `n u m k M G T P E`,
/// `Ki Mi Gi Ti Pi Ei`, or `e`/`E` and an exponent.
pub(super) fn parse(text: &str) -> Option<u128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let whole_end = rest.bytes().position(|c| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (whole, rest) = rest.split_at(whole_end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().position(|c| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (binary, exponent) = scale(suffix)?;
    let value = value(whole, fraction, binary, exponent)?;
    (value == 0 || !negative).then_some(value)
}

/// The factor of a suffix: a power of 1024 and a power of ten.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (1, 0),
        "Mi" => (2, 0),
        "Gi" => (3, 0),
        "Ti" => (4, 0),
        "Pi" => (5, 0),
        "Ei" => (6, 0),
        _ => {
            let number = suffix.strip_prefix(['e', 'E'])?;
            let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
            if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
                return None;
            }
            (0, number.parse().ok().filter(|exponent: &i32| exponent.abs() <= 60)?)
        }
    })
}

/// `whole.fraction × 1024^binary × 10^exponent`, rounded up.
fn value(whole: &str, fraction: &str, binary: u32, exponent: i32) -> Option<u128> {
    const LIMIT: u128 = 1_000_000_000_000_000_000_000_000_000_000;
    // Fractions finer than 20 digits only decide whether there is something to round up.
    let (kept, rest) = fraction.split_at(fraction.len().min(20));
    let mut remainder = rest.bytes().any(|c| c != b'0');
    let mut value: u128 = 0;
    for digit in whole.bytes().chain(kept.bytes()) {
        value = value.checked_mul(10)?.checked_add(u128::from(digit - b'0'))?;
    }
    value = value.checked_mul(1024u128.pow(binary))?;
    let exponent = exponent - kept.len() as i32;
    if value == 0 {
        return Some(u128::from(remainder));
    }
    let power = 10u128.checked_pow(exponent.unsigned_abs());
    value = match (exponent < 0, power) {
        (false, power) => value.checked_mul(power?)?,
        (true, Some(power)) => {
            remainder |= !value.is_multiple_of(power);
            value / power
        }
        // Far below one.
        (true, None) => {
            remainder = true;
            0
        }
    };
    value.checked_add(u128::from(remainder)).filter(|&value| value <= LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_kubernetes_are_understood() {
        let cases = [
            ("0", 0),
            ("-0", 0),
            ("12", 12),
            ("+12", 12),
            ("007", 7),
            ("10M", 10_000_000),
            ("1k", 1000),
            ("1P", 1_000_000_000_000_000),
            ("1Ki", 1024),
            ("1.5Gi", 1_610_612_736),
            ("1.G", 1_000_000_000),
            (".5k", 500),
            ("2e3", 2000),
            ("2E3", 2000),
            ("2e+3", 2000),
            ("2000e-3", 2),
            ("1E", 1_000_000_000_000_000_000),
            ("1500m", 2),
            ("1n", 1),
            ("0.0000000000000000000000000001", 1),
            ("1.00000000000000000000000000000000000000000000", 1),
            ("1.00000000000000000000000000000000000000000001", 2),
            ("1e-60", 1),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Some(want), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "+",
            "-",
            ".",
            "k",
            "-1",
            "1K",
            "1ki",
            "1kB",
            "1 M",
            " 1",
            "1M ",
            "1e",
            "1e1.5",
            "1e+-3",
            "0x10",
            "1..2",
            "1,5",
            "NaN",
            "1e61",
            "1e99999999999",
            "9999999999999999999999999999999999999999",
            "١",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-+0-9.eEinumkKMGTP]{0,60}|.{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_numbers_scale_exactly(number in 0u64..1_000_000, power in 0usize..6) {
            let decimal = ["", "k", "M", "G", "T", "P"][power];
            let binary = ["", "Ki", "Mi", "Gi", "Ti", "Pi"][power];
            let number_wide = u128::from(number);
            prop_assert_eq!(parse(&format!("{number}{decimal}")), Some(number_wide * 1000u128.pow(power as u32)));
            prop_assert_eq!(parse(&format!("{number}{binary}")), Some(number_wide * 1024u128.pow(power as u32)));
        }

        #[test]
        fn fractions_round_up(number in 0u32..1000, thousandths in 0u32..1000) {
            let want = u128::from(number) + u128::from(thousandths > 0);
            prop_assert_eq!(parse(&format!("{number}.{thousandths:03}")), Some(want));
            prop_assert_eq!(parse(&format!("{}m", number * 1000 + thousandths)), Some(want));
        }
    }
}

use super::super::buffer::Buffer;

/// A number of a body as `digits * 10^exponent`, without zeros at either end of the digits: `1`, `1.0` and `10e-1` are one,
/// and no digit is lost. Doubles would make one of two seeds above 2^53.
#[derive(Debug)]
pub(super) struct Decimal<'a> {
    negative: bool,
    integer: &'a [u8],
    fraction: &'a [u8],
    /// Zeros before the first other digit, which is at most the number of digits.
    leading: usize,
    digits: usize,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Reads what the parser took for a number.
    pub(super) fn read(number: &'a str) -> Self {
        let (negative, number) = match number.strip_prefix('-') {
            Some(number) => (true, number),
            None => (false, number),
        };
        let (mantissa, exponent) = match number.find(['e', 'E']) {
            Some(at) => (&number[..at], number[at + 1..].parse().unwrap_or(0)),
            None => (number, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (integer, fraction) = (integer.as_bytes(), fraction.as_bytes());
        let zero = |&digit: &u8| digit == b'0';
        let all = || integer.iter().chain(fraction).copied();
        let leading = all().take_while(zero).count();
        let length = integer.len() + fraction.len();
        if leading == length {
            return Self {
                negative: false,
                integer,
                fraction,
                leading,
                digits: 0,
                exponent: 0,
            };
        }
        let trailing = all().rev().take_while(zero).count();
        Self {
            negative,
            integer,
            fraction,
            leading,
            digits: length - leading - trailing,
            exponent: exponent + trailing as i64 - fraction.len() as i64,
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.digits == 0
    }

    pub(super) fn write(&self, out: &mut Buffer) {
        out.tag(self.negative.into());
        // Zigzag: small exponents of either sign are one byte.
        out.number(((self.exponent << 1) ^ (self.exponent >> 63)) as u64);
        out.number(self.digits as u64);
        let all = self.integer.iter().chain(self.fraction);
        for digit in all.skip(self.leading).take(self.digits) {
            out.tag(*digit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(number: &str) -> Vec<u8> {
        let mut out = Buffer::default();
        Decimal::read(number).write(&mut out);
        out.as_slice().to_vec()
    }

    #[test]
    fn spellings_of_one_number_are_one() {
        for spellings in [
            &[
                "1", "1.0", "1e0", "1E+00", "10e-1", "0.1e1", "0.010e2", "1e-0",
            ][..],
            &["0", "-0", "0.0", "-0e5", "0e999999999", "0.000"],
            &["-120", "-1.2e2", "-120.00", "-0.12E3"],
            &["0.1", "1e-1", "0.10", "100e-3"],
            &[
                "18446744073709551616",
                "18446744073709551616.0",
                "1844674407370955161.6e1",
            ],
        ] {
            for spelling in spellings {
                assert_eq!(written(spelling), written(spellings[0]), "{spelling}");
            }
        }
    }

    #[test]
    fn different_numbers_differ() {
        let numbers = [
            "0",
            "1",
            "-1",
            "10",
            "100",
            "0.1",
            "0.01",
            "11",
            "101",
            "1.01",
            "0.30000000000000004",
            "0.3",
            "9007199254740992",
            "9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709551617",
            "1e400",
            "1e401",
        ];
        for (at, one) in numbers.iter().enumerate() {
            for other in &numbers[at + 1..] {
                assert_ne!(written(one), written(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn zero_is_known_in_any_spelling() {
        assert!(Decimal::read("-0.0e7").is_zero());
        assert!(!Decimal::read("0.001").is_zero());
    }
}

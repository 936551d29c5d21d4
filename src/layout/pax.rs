//! PAX extended header records: arbitrary bytes, exact times.

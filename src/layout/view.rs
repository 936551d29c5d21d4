//! Views: functions that build a `Tree`.

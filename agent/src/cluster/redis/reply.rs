//! What the scripts answer, read. Whatever has another form is nothing of ours.

use ::redis::Value;

use crate::cluster::StoreError;

/// A list of values.
pub(super) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(odd()),
    }
}

/// A list of exactly so many.
pub(super) fn fields<const N: usize>(value: Value) -> Result<[Value; N], StoreError> {
    list(value)?.try_into().map_err(|_| odd())
}

/// A number, or one in digits.
pub(super) fn number(value: &Value) -> Result<u64, StoreError> {
    let number = match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()),
        _ => None,
    };
    number.ok_or_else(odd)
}

/// Bytes, or nothing.
pub(super) fn bytes(value: Value) -> Result<Option<Vec<u8>>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        _ => Err(odd()),
    }
}

/// Text, or nothing where there is none, or bytes that are no text.
pub(super) fn text(value: Value) -> Result<Option<String>, StoreError> {
    Ok(bytes(value)?.and_then(|bytes| String::from_utf8(bytes).ok()))
}

/// The error for an answer that no script of ours gives.
pub(super) fn odd() -> StoreError {
    StoreError::Unfit("it answers something else than what was asked".to_owned())
}

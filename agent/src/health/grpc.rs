//! `grpc.health.v1.Health/Check`: the two messages, of one field each.

use super::check::Failed;

/// The largest answer that is looked at: a length prefix and a field, with room for fields of later versions.
pub(super) const ANSWER_MAX: usize = 1024;
const SERVING: u64 = 1;

/// The request: the field `service` (1), with gRPC's length prefix.
pub(super) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    // Names of services are bounded by the documents; a longer one would be refused by the server.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

fn put_varint(bytes: &mut Vec<u8>, mut value: usize) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// What an answer's body says: whether the field `status` (1) is `SERVING`. Fields of later versions are passed over.
pub(super) fn answer(body: &[u8]) -> Result<(), Failed> {
    let malformed = Failed::Malformed("the answer is no HealthCheckResponse");
    let Some(([compressed, length @ ..], message)) = body.split_first_chunk::<5>() else {
        return Err(malformed);
    };
    if *compressed != 0 || usize::try_from(u32::from_be_bytes(*length)).ok() != Some(message.len()) {
        return Err(malformed);
    }
    match status(message) {
        Some(SERVING) => Ok(()),
        Some(2) => Err(Failed::NotServing("NOT_SERVING")),
        Some(3) => Err(Failed::NotServing("SERVICE_UNKNOWN")),
        Some(_) => Err(Failed::NotServing("UNKNOWN")),
        None => Err(malformed),
    }
}

/// The field 1 of a message, 0 where it is not there; `None`: this is no message.
fn status(mut rest: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_as_protobuf_has_them() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = request(&"x".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }

    #[test]
    fn answers_say_whether_it_serves() {
        let malformed = Some("the answer is no HealthCheckResponse");
        let cases: [(&str, &[u8], Option<&str>); 12] = [
            ("serving", &[0, 0, 0, 0, 2, 8, 1], None),
            ("not serving", &[0, 0, 0, 0, 2, 8, 2], Some("gRPC health NOT_SERVING")),
            ("unknown service", &[0, 0, 0, 0, 2, 8, 3], Some("gRPC health SERVICE_UNKNOWN")),
            ("no field", &[0, 0, 0, 0, 0], Some("gRPC health UNKNOWN")),
            ("a further field of bytes", &[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 1], None),
            ("further numbers", &[0, 0, 0, 0, 9, 0x25, 1, 2, 3, 4, 8, 1, 16, 7], None),
            ("nothing", &[], malformed),
            ("compressed", &[1, 0, 0, 0, 2, 8, 1], malformed),
            ("cut", &[0, 0, 0, 0, 2, 8], malformed),
            ("longer than it says", &[0, 0, 0, 0, 1, 8, 1], malformed),
            ("a number without end", &[0, 0, 0, 0, 2, 8, 0x80], malformed),
            ("an old wire type", &[0, 0, 0, 0, 2, 0x0b, 1], malformed),
        ];
        for (what, body, expected) in cases {
            let said = answer(body).err().map(|failed| failed.to_string());
            assert_eq!(said.as_deref(), expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = answer(&body);
            let _ = status(&body);
        }
    }
}

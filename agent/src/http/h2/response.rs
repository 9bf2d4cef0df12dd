//! Response heads from HTTP/2.

use http::{HeaderMap, StatusCode};

use crate::http::Refusal;
use crate::http::h1::{Limits, ResponseHead};

/// Reads a response's head into `head`; `to_head`: it answers a HEAD request.
pub fn read_response(
    head: &mut ResponseHead,
    status: StatusCode,
    fields: &HeaderMap,
    to_head: bool,
    limits: &Limits,
) -> Result<(), Refusal> {
    let fields = fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    head.assemble(status.as_u16(), fields, to_head, limits)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::http::body::Framing;

    fn read(status: u16, fields: &[(&'static str, &'static str)]) -> Result<ResponseHead, &'static str> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        let mut head = ResponseHead::default();
        read_response(&mut head, status, &map, false, &Limits::default())
            .map_err(|refusal| refusal.reason)?;
        Ok(head)
    }

    #[test]
    fn responses() {
        let framing = |status, fields: &[_]| read(status, fields).map(|head| head.framing());
        assert_eq!(framing(200, &[("content-length", "5")]), Ok(Framing::Length(5)));
        assert_eq!(framing(200, &[]), Ok(Framing::UntilClose));
        assert_eq!(framing(204, &[]), Ok(Framing::None));
        assert_eq!(framing(103, &[("link", "</a>")]), Ok(Framing::None));
        assert_eq!(framing(101, &[]), Err("status_out_of_range"));
        assert_eq!(framing(600, &[]), Err("status_out_of_range"));
        assert_eq!(
            framing(200, &[("content-length", "5"), ("content-length", "6")]),
            Err("content_length_repeated")
        );
        assert_eq!(framing(200, &[("x", "a ")]), Err("header_value_space"));
        assert!(read(103, &[]).expect("good").is_interim());
        for (status, phrase) in [(200, "OK"), (404, "Not Found"), (299, "")] {
            assert_eq!(read(status, &[]).expect("good").reason(), phrase.as_bytes());
        }
    }
}

//! Documents that were mangled: nothing panics, and what was in force stays or is replaced, but never by half.

use proptest::prelude::*;

use super::{SHOP, file, load_texts};
use crate::config::load;

const ROUTES: &str = concat!(
    include_str!("../../../../examples/order-service.yaml"),
    "---\n",
    include_str!("../../../../examples/payment-service.yaml"),
    "---\n",
    include_str!("../../../../examples/strict-mtls.yaml"),
);

/// One change of a text.
fn mangle(text: &str, at: usize, kind: u8, byte: char) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let line = at % lines.len();
    let position = at % (lines[line].chars().count() + 1);
    match kind % 5 {
        0 => drop(lines.remove(line)),
        1 => lines.truncate(line),
        2 => lines.insert(line, lines[line].clone()),
        3 => {
            lines[line] = lines[line]
                .chars()
                .enumerate()
                .filter(|(index, _)| *index != position)
                .map(|(_, c)| c)
                .collect();
        }
        _ => {
            let (before, after): (Vec<_>, Vec<_>) =
                lines[line].chars().enumerate().partition(|(index, _)| *index < position);
            let text = |part: Vec<(usize, char)>| part.into_iter().map(|(_, c)| c).collect::<String>();
            lines[line] = text(before) + &byte.to_string() + &text(after);
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_mangled_document_panics_or_goes_unreported(
        at in 0usize..2000,
        kind in any::<u8>(),
        byte in prop::sample::select(vec![' ', ':', '-', '{', '[', '"', '\t', '&', '*', '0', 'x', '\u{fc}']),
    ) {
        let good = load_texts(&[SHOP, ROUTES]);
        let mangled = mangle(ROUTES, at, kind, byte);
        let state = load(&good, vec![file("0.yaml", SHOP), file("1.yaml", &mangled)]);
        // The other file is untouched.
        prop_assert_eq!(&state.model.services, &good.model.services);
        prop_assert_eq!(&state.model.endpoints, &good.model.endpoints);
        // Whatever is refused has a message.
        for object in &state.report.objects {
            prop_assert!(!object.state.as_str().starts_with("rejected") || !object.messages.is_empty());
        }
        // A file that is broken as a whole changes nothing.
        if state.report.files.iter().any(|file| !file.messages.is_empty()) && state.report.has_errors()
            && state.report.objects.iter().all(|object| object.state.as_str() != "rejected")
        {
            prop_assert_eq!(state.model.mesh_routes.len(), good.model.mesh_routes.len());
        }
    }
}

//! Names the layout of the pinned maps, so that an agent adopts only maps that it would have made itself.

use agent_common::layout::{MEANING, MapShape, fingerprint};
use aya::EbpfError;
use aya_obj::Object;

use super::CaptureError;

/// The name of the layout of these maps of an object; `capacities` stand in for what the object says.
pub fn layout(
    object: &[u8],
    maps: &[&'static str],
    capacities: &[(&str, u32)],
) -> Result<String, CaptureError> {
    let object = Object::parse(object).map_err(|error| CaptureError::Object(EbpfError::ParseError(error)))?;
    let shape = |name: &&'static str| -> MapShape<'static> {
        let map = object.maps.get(*name).expect("the object holds the maps that are named");
        let given = capacities.iter().find(|(of, _)| of == name);
        MapShape {
            name,
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: given.map_or(map.max_entries(), |(_, entries)| *entries),
            flags: map.map_flags(),
        }
    };
    let shapes: Vec<MapShape<'_>> = maps.iter().map(shape).collect();
    Ok(format!("{MEANING}-{:016x}", fingerprint(MEANING, &shapes)))
}

//! Recovery keys as people type them.

/// Letters of a recovery key: those that keyboards everywhere have in the same place.
const LETTERS: &str = "cbdefghijklnrtuv";
const LETTERS_IN_ALL: usize = 64;
const GROUP: usize = 8;

/// A key as it was made: eight groups of eight letters with dashes between them. Nothing if it cannot be one.
#[must_use]
pub fn read(typed: &str) -> Option<String> {
    let letters: Vec<char> =
        typed.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    if letters.len() != LETTERS_IN_ALL || !letters.iter().all(|letter| LETTERS.contains(*letter)) {
        return None;
    }
    let groups: Vec<String> = letters.chunks(GROUP).map(|group| group.iter().collect()).collect();
    Some(groups.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_spaces_and_capitals_do_not_matter() {
        let key = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv";
        assert_eq!(read(key).as_deref(), Some(key));
        assert_eq!(read(&format!("  {}\r", key.replace('-', " ").to_uppercase())).as_deref(), Some(key));
        assert_eq!(read(&key.replace('-', "")).as_deref(), Some(key));
        for bad in ["", &key[1..], &format!("{key}c"), &key.replace('c', "a")] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}

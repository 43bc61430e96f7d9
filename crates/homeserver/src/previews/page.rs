//! What a page says of itself: its Open Graph properties, or what stands in for them.
//!
//! Not here: where its picture is fetched from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::html::{Tag, Token, Tokens, decode};

/// What is worth showing of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// By their names, `og:title` and so on. Nothing that clients would fetch by themselves.
    pub properties: BTreeMap<String, String>,
    /// Where its picture is, as the page says it.
    pub image: Option<String>,
    /// What the page takes its relative URLs to be relative to, if not itself.
    pub base: Option<String>,
}

const MAX_PROPERTIES: usize = 32;
const MAX_NAME_BYTES: usize = 64;
const MAX_TITLE_CHARS: usize = 300;
const MAX_VALUE_CHARS: usize = 1_000;
/// A text of the page that stands in for a description.
const MAX_EXCERPT_CHARS: usize = 300;
/// Shorter paragraphs are captions and the like.
const MIN_EXCERPT_CHARS: usize = 40;
/// What is gathered of one text before its white space is gone.
const MAX_GATHERED_BYTES: usize = 4 * 1024;
const MAX_URL_BYTES: usize = 2 * 1024;
/// Smaller pictures are decoration.
const MIN_SIDE_PIXELS: u32 = 16;

/// Elements that say nothing of what the page is about.
const ASIDE: [&str; 9] = ["nav", "header", "footer", "aside", "svg", "template", "noscript", "form", "button"];
/// Elements that end a paragraph where they begin.
const BLOCKS: [&str; 15] =
    ["p", "div", "ul", "ol", "li", "dl", "table", "tr", "td", "pre", "blockquote", "section", "article", "h1", "h2"];

/// Reads a page.
pub fn read(html: &str) -> Page {
    let mut reader = Reader::default();
    for token in Tokens::new(html) {
        match token {
            Token::Start(tag) => reader.start(&tag),
            Token::End(name) => reader.end(name),
            Token::Text(text) => reader.text(text),
        }
    }
    reader.page()
}

/// The encoding that a page says it has.
pub fn declared_encoding(html: &str) -> Option<String> {
    Tokens::new(html).find_map(|token| match token {
        Token::Start(tag) if tag.name().eq_ignore_ascii_case("meta") => {
            let of_type = || {
                let named = tag.attribute("http-equiv").is_some_and(|name| name.eq_ignore_ascii_case("content-type"));
                tag.attribute("content").filter(|_| named).and_then(|content| charset(&content).map(str::to_owned))
            };
            tag.attribute("charset").map(Cow::into_owned).or_else(of_type)
        }
        _ => None,
    })
}

/// The encoding that a content type names.
pub fn charset(content_type: &str) -> Option<&str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches(['"', '\'']))
    })
}

/// The text that is being gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Title,
    Heading,
    Paragraph,
}

#[derive(Default)]
struct Reader {
    page: Page,
    /// What `meta` says by other names.
    named: BTreeMap<&'static str, String>,
    title: Option<String>,
    heading: Option<String>,
    paragraph: Option<String>,
    linked_image: Option<String>,
    first_image: Option<String>,
    gathering: Option<Text>,
    gathered: String,
    aside: usize,
    /// In an element whose text is not for readers.
    unread: bool,
}

impl Reader {
    fn start(&mut self, tag: &Tag<'_>) {
        let name = tag.name().to_ascii_lowercase();
        if BLOCKS.contains(&&*name) {
            self.finish();
        }
        if ASIDE.contains(&&*name) {
            self.aside += 1;
        }
        let begins = match &*name {
            "meta" => return self.meta(tag),
            "link" => return self.link(tag),
            "base" => {
                let href = tag.attribute("href").filter(|href| href.len() <= MAX_URL_BYTES);
                self.page.base = self.page.base.take().or(href.map(Cow::into_owned));
                return;
            }
            "img" => return self.img(tag),
            "script" | "style" | "textarea" | "xmp" | "iframe" | "noembed" | "noframes" => {
                self.unread = true;
                return;
            }
            "title" if self.title.is_none() => Text::Title,
            "h1" if self.heading.is_none() => Text::Heading,
            "p" if self.paragraph.is_none() => Text::Paragraph,
            _ => return,
        };
        if self.aside == 0 {
            self.finish();
            self.gathering = Some(begins);
        }
    }

    fn end(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.unread = false;
        if ASIDE.contains(&&*name) {
            self.aside = self.aside.saturating_sub(1);
        }
        if name == "title" || BLOCKS.contains(&&*name) {
            self.finish();
        }
    }

    fn text(&mut self, text: &str) {
        if self.gathering.is_none() || self.unread || self.aside > 0 {
            return;
        }
        let room = MAX_GATHERED_BYTES.saturating_sub(self.gathered.len());
        self.gathered.extend(decode(text).chars().take(room));
    }

    fn finish(&mut self) {
        let Some(text) = self.gathering.take() else { return };
        let gathered = std::mem::take(&mut self.gathered);
        let (slot, limit) = match text {
            Text::Title => (&mut self.title, MAX_TITLE_CHARS),
            Text::Heading => (&mut self.heading, MAX_TITLE_CHARS),
            Text::Paragraph => (&mut self.paragraph, MAX_EXCERPT_CHARS),
        };
        let squeezed = squeeze(&gathered, limit);
        let enough = if text == Text::Paragraph { MIN_EXCERPT_CHARS } else { 1 };
        if slot.is_none() && squeezed.chars().count() >= enough {
            *slot = Some(squeezed);
        }
    }

    fn meta(&mut self, tag: &Tag<'_>) {
        let Some(name) = tag.attribute("property").or_else(|| tag.attribute("name")) else { return };
        let name = name.trim().to_ascii_lowercase();
        let content = tag.attribute("content").unwrap_or_default();
        if content.trim().is_empty() || name.len() > MAX_NAME_BYTES {
            return;
        }
        const NAMED: [&str; 8] = [
            "og:image",
            "og:image:url",
            "og:image:secure_url",
            "twitter:image",
            "twitter:image:src",
            "twitter:title",
            "twitter:description",
            "description",
        ];
        if let Some(known) = NAMED.into_iter().find(|known| *known == name) {
            let value =
                if known.contains("image") { content.trim().to_owned() } else { squeeze(&content, MAX_VALUE_CHARS) };
            if value.len() <= MAX_URL_BYTES.max(4 * MAX_VALUE_CHARS) {
                self.named.entry(known).or_insert(value);
            }
            return;
        }
        let fetched = ["og:image", "og:video", "og:audio"].into_iter().any(|start| name.starts_with(start));
        let properties = &mut self.page.properties;
        if name.starts_with("og:") && !fetched && properties.len() < MAX_PROPERTIES {
            let limit = if name == "og:title" { MAX_TITLE_CHARS } else { MAX_VALUE_CHARS };
            properties.entry(name).or_insert_with(|| squeeze(&content, limit));
        }
    }

    fn link(&mut self, tag: &Tag<'_>) {
        let is_image = tag.attribute("rel").is_some_and(|rel| rel.eq_ignore_ascii_case("image_src"));
        if is_image && self.linked_image.is_none() {
            self.linked_image = url_of(tag, "href");
        }
    }

    fn img(&mut self, tag: &Tag<'_>) {
        let side = |name| tag.attribute(name).and_then(|side| side.trim().trim_end_matches("px").parse::<u32>().ok());
        let tiny = ["width", "height"].into_iter().any(|name| side(name).is_some_and(|side| side < MIN_SIDE_PIXELS));
        if self.first_image.is_none() && self.aside == 0 && !tiny {
            self.first_image = url_of(tag, "src");
        }
    }

    fn page(mut self) -> Page {
        self.finish();
        let mut named = |names: &[&'static str]| names.iter().find_map(|name| self.named.remove(name));
        let image = named(&["og:image", "og:image:url", "og:image:secure_url", "twitter:image", "twitter:image:src"]);
        let title = named(&["twitter:title"]).or(self.title).or(self.heading);
        let description = named(&["twitter:description", "description"]).or(self.paragraph);
        let mut page = self.page;
        for (name, value) in [("og:title", title), ("og:description", description)] {
            if let Some(value) = value {
                page.properties.entry(name.to_owned()).or_insert(value);
            }
        }
        page.image = image.or(self.linked_image).or(self.first_image);
        page
    }
}

/// A URL that could be fetched: pictures that stand in the page itself are none.
fn url_of(tag: &Tag<'_>, attribute: &str) -> Option<String> {
    let url = tag.attribute(attribute)?;
    let url = url.trim();
    let fits = !url.is_empty() && url.len() <= MAX_URL_BYTES && !url.starts_with("data:");
    fits.then(|| url.to_owned())
}

/// A text on one line, without control characters, of so many characters at most.
fn squeeze(text: &str, max_chars: usize) -> String {
    let mut out = String::new();
    for (count, word) in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).enumerate()
    {
        if count > 0 {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > 4 * max_chars {
            break;
        }
    }
    match out.char_indices().nth(max_chars) {
        None => out,
        Some(_) => {
            let mut cut: String = out.chars().take(max_chars.saturating_sub(1)).collect();
            cut.truncate(cut.trim_end().len());
            cut.push('…');
            cut
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(html: &str) -> Vec<(String, String)> {
        read(html).properties.into_iter().collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_page_that_describes_itself_is_taken_at_its_word() {
        let page = read(
            r#"<html><head><title>Not this</title>
            <meta property="og:title" content="  The
                title &amp; more ">
            <META PROPERTY='og:description' CONTENT='All of it'>
            <meta property="og:title" content="A second one">
            <meta name="og:site_name" content="Wiki"><meta property="og:url" content="https://wiki.example.org/">
            <meta property="og:image" content="/a.png"><meta property="og:image:width" content="7">
            <meta property="og:video:url" content="https://elsewhere.example.org/spy">
            <meta property="other:title" content="No"></head><body><p>Text</p></body>"#,
        );
        let expected = [
            ("og:description", "All of it"),
            ("og:site_name", "Wiki"),
            ("og:title", "The title & more"),
            ("og:url", "https://wiki.example.org/"),
        ];
        assert_eq!(page.properties.into_iter().collect::<Vec<_>>(), pairs(&expected));
        assert_eq!(page.image.as_deref(), Some("/a.png"));
    }

    #[test]
    fn other_pages_have_a_title_a_text_and_a_picture() {
        let page = read(
            "<base href='/sub/'><title>A &uuml;ber\n page</title><body><nav><p>Home, and many other places to go to from \
             here</p><img src=logo.png></nav><svg><title>x</title></svg><img src='data:image/png;base64,AA'><img src=dot.gif \
             width=1 height=1><p>Short.<p>A <b>paragraph</b><script>var p = 'no';</script> of some words that says what all of \
             this is.<div>Other</div><img src=' big.jpg '><img src=two.jpg>",
        );
        let text = "A paragraph of some words that says what all of this is.";
        let expected = pairs(&[("og:description", text), ("og:title", "A über page")]);
        assert_eq!(page.properties.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!((page.image.as_deref(), page.base.as_deref()), (Some("big.jpg"), Some("/sub/")));
        let named =
            "<title>a</title><meta name=description content=d><meta name=twitter:image content=t.png><img src=i.png>";
        assert_eq!(properties(named), pairs(&[("og:description", "d"), ("og:title", "a")]));
        assert_eq!(read(named).image.as_deref(), Some("t.png"));
        assert_eq!(properties("<h1>Only <i>this</i></h1>"), pairs(&[("og:title", "Only this")]));
        assert_eq!(read(""), Page::default());
        assert_eq!(read("<meta property='og:title' content=' '>"), Page::default());
    }

    #[test]
    fn what_is_kept_of_a_page_is_bounded() {
        let mut html = format!("<title>{}</title>", "word ".repeat(100_000));
        for n in 0..10_000 {
            html.push_str(&format!("<meta property='og:p{n}' content='{}'>", "x".repeat(2_000)));
        }
        html.push_str(&format!("<meta property='og:image' content='{}'>", "x".repeat(100_000)));
        let page = read(&html);
        assert!(page.properties.len() <= MAX_PROPERTIES + 1);
        assert!(page.properties.values().all(|value| value.chars().count() <= MAX_VALUE_CHARS));
        let title = &page.properties["og:title"];
        assert!(title.ends_with('…') && title.chars().count() <= MAX_TITLE_CHARS, "{title}");
        assert_eq!(page.image, None);
    }

    #[test]
    fn encodings_are_named_in_two_ways() {
        let declared = |html: &str| declared_encoding(html);
        assert_eq!(declared("<meta charset=utf-8>").as_deref(), Some("utf-8"));
        let of_type = "<META HTTP-EQUIV=Content-Type CONTENT='text/html; charset=iso-8859-1'>";
        assert_eq!(declared(of_type).as_deref(), Some("iso-8859-1"));
        assert_eq!(declared("<meta name=x content='text/html; charset=iso-8859-1'>"), None);
        assert_eq!(charset("text/html; Charset=\"koi8-r\""), Some("koi8-r"));
        assert_eq!(charset("text/html"), None);
    }
}

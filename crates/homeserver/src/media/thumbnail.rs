//! From a picture to a smaller one: what size, which format, and the work itself. Pure and blocking; a picture that
//! is too large is refused by its header, before anything is decoded.
//!
//! Not here: where thumbnails are kept, and how many are made at one time (`mod.rs`).

use std::io::{BufRead, Seek, SeekFrom};

use image::codecs::gif::{GifDecoder, GifEncoder, Repeat};
use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::codecs::png::{PngDecoder, PngEncoder};
use image::codecs::webp::WebPDecoder;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{
    AnimationDecoder, ColorType, DynamicImage, Frame, Frames, ImageDecoder, ImageEncoder, ImageError, ImageFormat,
    ImageReader, Limits,
};

/// What a client asks for, rounded up to one of a few sizes so that thumbnails are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    pub width: u32,
    pub height: u32,
    pub method: Method,
    pub animated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Exactly the shape that was asked for; what does not fit is cut off.
    Crop,
    /// The shape of the picture.
    Scale,
}

/// How much work a picture may make.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub max_pixels: u64,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// The picture is no larger than what was asked for: clients get it as it is.
    Original {
        content_type: &'static str,
    },
    Smaller {
        bytes: Vec<u8>,
        content_type: &'static str,
    },
}

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the picture is too large to make a thumbnail of")]
    TooLarge,
    #[error("no thumbnail can be made of this file: {0}")]
    NotAPicture(String),
    #[error("the picture cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// The sizes the specification names, and larger ones for large screens.
const SCALES: [(u32, u32); 5] = [(320, 240), (640, 480), (800, 600), (1600, 1200), (2560, 1920)];
const SQUARES: [u32; 6] = [32, 96, 192, 320, 640, 1280];
/// Who asks for more gets the picture itself.
const LARGEST_SIDE: u32 = 2560;
const JPEG_QUALITY: u8 = 82;
/// Longer animations stand still when they are small.
const MAX_FRAMES: u32 = 300;
const MAX_ICC_BYTES: usize = 64 * 1024;

impl Ask {
    /// Rounds up to a size that others ask for, too.
    pub fn new(width: u32, height: u32, method: Method, animated: bool) -> Self {
        let (width, height) = (width.clamp(1, u32::MAX / 2), height.clamp(1, u32::MAX / 2));
        let rounded = match method {
            Method::Scale => SCALES.into_iter().find(|(w, h)| *w >= width && *h >= height),
            Method::Crop if width == height => SQUARES.into_iter().find(|side| *side >= width).map(|side| (side, side)),
            Method::Crop => Some((width, height)).filter(|(w, h)| *w <= LARGEST_SIDE && *h <= LARGEST_SIDE),
        };
        // Beyond the largest size there is only one answer: the picture itself.
        let (width, height) = rounded.unwrap_or((u32::MAX, u32::MAX));
        Self { width, height, method, animated }
    }
}

/// How a picture of one size becomes a smaller one: first it is scaled, then its middle is cut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    scaled: (u32, u32),
    cut: (u32, u32),
}

impl Plan {
    /// `None`: the picture stays as it is.
    fn new(source: (u32, u32), ask: Ask) -> Option<Self> {
        let (width, height) = (f64::from(source.0), f64::from(source.1));
        let (ask_width, ask_height) = (f64::from(ask.width), f64::from(ask.height));
        // Both sides stay at least as long as was asked, and nothing grows.
        let factor = (ask_width / width).max(ask_height / height).min(1.0);
        let side = |length: f64| ((length * factor).round() as u32).max(1);
        let scaled = (side(width).min(source.0), side(height).min(source.1));
        let cut = match ask.method {
            Method::Scale => scaled,
            Method::Crop if ask.width == u32::MAX => scaled,
            Method::Crop => shape(scaled, (ask_width, ask_height)),
        };
        (cut != source).then_some(Self { scaled, cut })
    }

    fn turned(self) -> Self {
        Self { scaled: (self.scaled.1, self.scaled.0), cut: (self.cut.1, self.cut.0) }
    }

    fn apply(self, image: &DynamicImage) -> DynamicImage {
        let scaled = scale(image, self.scaled);
        if self.cut == self.scaled {
            return scaled;
        }
        let (left, top) = ((self.scaled.0 - self.cut.0) / 2, (self.scaled.1 - self.cut.1) / 2);
        scaled.crop_imm(left, top, self.cut.0, self.cut.1)
    }
}

/// The largest part of `from` that has the proportions of `like` and is no larger.
fn shape(from: (u32, u32), like: (f64, f64)) -> (u32, u32) {
    let (width, height) = (f64::from(from.0), f64::from(from.1));
    let factor = (width / like.0).min(height / like.1).min(1.0);
    let side = |length: f64, most: u32| ((length * factor).round() as u32).clamp(1, most);
    (side(like.0, from.0), side(like.1, from.1))
}

fn scale(image: &DynamicImage, to: (u32, u32)) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    if (width, height) == to {
        return image.clone();
    }
    // Far down, a fast average does most of the way and a good filter the rest.
    let (twice_width, twice_height) = (to.0.saturating_mul(2), to.1.saturating_mul(2));
    if width / 2 > twice_width && height / 2 > twice_height {
        return image.thumbnail_exact(twice_width, twice_height).resize_exact(to.0, to.1, FilterType::CatmullRom);
    }
    image.resize_exact(to.0, to.1, FilterType::CatmullRom)
}

/// The format and how many pixels there are, from the header alone.
pub fn probe(source: impl BufRead + Seek, bounds: Bounds) -> Result<(ImageFormat, u64), Failure> {
    let (format, (width, height)) = measure(source, bounds)?;
    Ok((format, u64::from(width) * u64::from(height)))
}

/// The format, width and height, from the header alone.
pub fn measure(source: impl BufRead + Seek, bounds: Bounds) -> Result<(ImageFormat, (u32, u32)), Failure> {
    let reader = limited(source, bounds)?;
    let format = format_of(&reader)?;
    let (width, height) = reader.into_dimensions().map_err(Failure::from)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Failure::NotAPicture("it has no pixels".to_owned()));
    }
    if pixels > bounds.max_pixels { Err(Failure::TooLarge) } else { Ok((format, (width, height))) }
}

/// Makes a thumbnail. `source` is read from where it stands.
pub fn make(mut source: impl BufRead + Seek, ask: Ask, bounds: Bounds) -> Result<Made, Failure> {
    let start = source.stream_position()?;
    let (format, _) = probe(&mut source, bounds)?;
    source.seek(SeekFrom::Start(start))?;
    let animated = is_animated(&mut source, format, bounds)?;
    source.seek(SeekFrom::Start(start))?;
    if animated && ask.animated {
        if let Some(made) = moving(&mut source, format, ask, bounds)? {
            return Ok(made);
        }
        source.seek(SeekFrom::Start(start))?;
    }
    match format {
        ImageFormat::Png => still(PngDecoder::with_limits(&mut source, limits(bounds))?, format, animated, ask, bounds),
        ImageFormat::Jpeg => still(JpegDecoder::new(&mut source)?, format, animated, ask, bounds),
        ImageFormat::Gif => still(GifDecoder::new(&mut source)?, format, animated, ask, bounds),
        _ => still(WebPDecoder::new(&mut source)?, format, animated, ask, bounds),
    }
}

fn limited<R: BufRead + Seek>(source: R, bounds: Bounds) -> Result<ImageReader<R>, Failure> {
    let mut reader = ImageReader::new(source).with_guessed_format()?;
    reader.limits(limits(bounds));
    Ok(reader)
}

/// Four bytes for each pixel, and some for the decoder.
fn limits(bounds: Bounds) -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(bounds.max_pixels.saturating_mul(4).saturating_add(16 << 20));
    limits
}

fn format_of<R: BufRead + Seek>(reader: &ImageReader<R>) -> Result<ImageFormat, Failure> {
    match reader.format() {
        Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::WebP)) => Ok(format),
        Some(other) => Err(Failure::NotAPicture(format!("{} is not supported", other.to_mime_type()))),
        None => Err(Failure::NotAPicture("it is in no known format".to_owned())),
    }
}

/// A GIF counts as animated: how many frames it has is only known at its end.
fn is_animated(source: impl BufRead + Seek, format: ImageFormat, bounds: Bounds) -> Result<bool, Failure> {
    Ok(match format {
        ImageFormat::Gif => true,
        ImageFormat::WebP => WebPDecoder::new(source)?.has_animation(),
        ImageFormat::Png => PngDecoder::with_limits(source, limits(bounds))?.is_apng()?,
        _ => false,
    })
}

/// A picture that does not move: the first frame, if it could.
fn still(
    mut decoder: impl ImageDecoder,
    format: ImageFormat,
    animated: bool,
    ask: Ask,
    bounds: Bounds,
) -> Result<Made, Failure> {
    decoder.set_limits(limits(bounds))?;
    let turn = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let turned = swaps_sides(turn);
    let (width, height) = decoder.dimensions();
    let upright = if turned { (height, width) } else { (width, height) };
    let plan = match Plan::new(upright, ask) {
        None if !animated => return Ok(Made::Original { content_type: format.to_mime_type() }),
        None => Plan { scaled: upright, cut: upright },
        Some(plan) => plan,
    };
    if decoder.total_bytes() > limits(bounds).max_alloc.unwrap_or(u64::MAX) {
        return Err(Failure::TooLarge);
    }
    let profile = decoder.icc_profile().ok().flatten();
    let image = DynamicImage::from_decoder(decoder)?;
    let mut small = (if turned { plan.turned() } else { plan }).apply(&image);
    drop(image);
    small.apply_orientation(turn);
    encode(&small, profile)
}

fn swaps_sides(turn: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(turn, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// JPEG, or PNG for what is transparent somewhere.
fn encode(image: &DynamicImage, profile: Option<Vec<u8>>) -> Result<Made, Failure> {
    let mut bytes = Vec::new();
    if image.color().has_alpha() {
        let rgba = image.to_rgba8();
        if rgba.pixels().any(|pixel| pixel.0[3] != u8::MAX) {
            let mut encoder = PngEncoder::new(&mut bytes);
            keep_profile(&mut encoder, profile, *b"RGB ");
            DynamicImage::ImageRgba8(rgba).write_with_encoder(encoder)?;
            return Ok(Made::Smaller { bytes, content_type: "image/png" });
        }
    }
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
    if matches!(image.color(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16) {
        keep_profile(&mut encoder, profile, *b"GRAY");
        image.to_luma8().write_with_encoder(encoder)?;
    } else {
        keep_profile(&mut encoder, profile, *b"RGB ");
        image.to_rgb8().write_with_encoder(encoder)?;
    }
    Ok(Made::Smaller { bytes, content_type: "image/jpeg" })
}

/// Keeps what the colours mean, if the profile is for the kind of colours that the pixels have now.
fn keep_profile(encoder: &mut impl ImageEncoder, profile: Option<Vec<u8>>, kind: [u8; 4]) {
    let fits = |profile: &Vec<u8>| profile.len() <= MAX_ICC_BYTES && profile.get(16..20) == Some(&kind[..]);
    if let Some(profile) = profile.filter(fits) {
        // An encoder that has no place for it makes a good picture all the same.
        let _ = encoder.set_icc_profile(profile);
    }
}

/// A small GIF that moves; `None` if that would be too much work, or if the picture does not move after all.
fn moving(source: impl BufRead + Seek, format: ImageFormat, ask: Ask, bounds: Bounds) -> Result<Option<Made>, Failure> {
    match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(source)?;
            decoder.set_limits(limits(bounds))?;
            shrink_frames(decoder.dimensions(), decoder.into_frames(), format, ask, bounds)
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(source)?;
            decoder.set_limits(limits(bounds))?;
            shrink_frames(decoder.dimensions(), decoder.into_frames(), format, ask, bounds)
        }
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(source, limits(bounds))?;
            shrink_frames(decoder.dimensions(), decoder.apng()?.into_frames(), format, ask, bounds)
        }
        _ => Ok(None),
    }
}

fn shrink_frames(
    size: (u32, u32),
    frames: Frames<'_>,
    format: ImageFormat,
    ask: Ask,
    bounds: Bounds,
) -> Result<Option<Made>, Failure> {
    let plan = Plan::new(size, ask);
    let (mut pixels, mut count) = (0u64, 0u32);
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 20);
    encoder.set_repeat(Repeat::Infinite)?;
    for frame in frames {
        let frame = match frame {
            Ok(frame) => frame,
            // A file that breaks off shows as much as arrived.
            Err(_) if count > 1 => break,
            Err(error) => return Err(error.into()),
        };
        let delay = frame.delay();
        let image = DynamicImage::ImageRgba8(frame.into_buffer());
        pixels = pixels.saturating_add(u64::from(image.width()) * u64::from(image.height()));
        count += 1;
        if pixels > bounds.max_pixels || count > MAX_FRAMES {
            return Ok(None);
        }
        // A picture that is small enough is only looked through, to see that it moves.
        let Some(plan) = plan else { continue };
        encoder.encode_frame(Frame::from_parts(plan.apply(&image).into_rgba8(), 0, 0, delay))?;
    }
    drop(encoder);
    Ok(match (count, plan) {
        (0 | 1, _) => None,
        (_, None) => Some(Made::Original { content_type: format.to_mime_type() }),
        (_, Some(_)) => Some(Made::Smaller { bytes, content_type: "image/gif" }),
    })
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooLarge,
            other => Self::NotAPicture(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{GrayImage, ImageBuffer, Rgb, RgbImage, Rgba, RgbaImage};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_assume, proptest};

    use super::*;

    const BOUNDS: Bounds = Bounds { max_pixels: 4_000_000 };

    fn crop(width: u32, height: u32) -> Ask {
        Ask::new(width, height, Method::Crop, false)
    }

    fn fit(width: u32, height: u32) -> Ask {
        Ask::new(width, height, Method::Scale, false)
    }

    fn small(bytes: &[u8], ask: Ask) -> Result<Made, Failure> {
        make(Cursor::new(bytes), ask, BOUNDS)
    }

    /// The type and the picture that came out.
    fn picture(made: Made) -> (&'static str, DynamicImage) {
        let Made::Smaller { bytes, content_type } = made else { panic!("the original came back") };
        let image = image::load_from_memory(&bytes).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap().to_mime_type(), content_type);
        (content_type, image)
    }

    fn size(made: Made) -> (u32, u32) {
        let (_, image) = picture(made);
        (image.width(), image.height())
    }

    /// Red to the left, blue to the right.
    fn halves(width: u32, height: u32) -> RgbImage {
        ImageBuffer::from_fn(width, height, |x, _| if x < width / 2 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) })
    }

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        encoded(image, ImageFormat::Png)
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn moving_gif(width: u32, height: u32, frames: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
        encoder.set_repeat(Repeat::Infinite).unwrap();
        for n in 0..frames {
            let image = RgbaImage::from_pixel(width, height, Rgba([n * 40, 0, 0, 255]));
            encoder.encode_frame(Frame::from_parts(image, 0, 0, image::Delay::from_numer_denom_ms(50, 1))).unwrap();
        }
        drop(encoder);
        bytes
    }

    fn frames(bytes: &[u8]) -> usize {
        GifDecoder::new(Cursor::new(bytes)).unwrap().into_frames().count()
    }

    #[test]
    fn pitfall_106_scaling_keeps_the_shape_and_both_sides_are_long_enough() {
        let wide = png(halves(1000, 500));
        assert_eq!(size(small(&wide, fit(320, 240)).unwrap()), (480, 240));
        assert_eq!(size(small(&wide, fit(100, 100)).unwrap()), (480, 240), "the sizes of others are shared");
        let tall = png(halves(500, 1000));
        assert_eq!(size(small(&tall, fit(320, 240)).unwrap()), (320, 640));
    }

    #[test]
    fn pitfall_106_cropping_gives_the_shape_that_was_asked_for() {
        let wide = png(halves(1000, 500));
        assert_eq!(size(small(&wide, crop(96, 96)).unwrap()), (96, 96));
        assert_eq!(size(small(&wide, crop(40, 40)).unwrap()), (96, 96));
        assert_eq!(size(small(&wide, crop(200, 100)).unwrap()), (200, 100));
        assert_eq!(size(small(&wide, crop(50, 200)).unwrap()), (50, 200));
        let (_, image) = picture(small(&wide, crop(96, 96)).unwrap());
        let (left, right) = (image.to_rgb8().get_pixel(5, 48).0, image.to_rgb8().get_pixel(90, 48).0);
        assert!(left[0] > 200 && left[2] < 50 && right[2] > 200 && right[0] < 50, "the middle: {left:?} {right:?}");
    }

    #[test]
    fn pitfall_106_nothing_grows() {
        let tiny = png(halves(20, 10));
        let original = Made::Original { content_type: "image/png" };
        assert_eq!(small(&tiny, fit(320, 240)).unwrap(), original);
        assert_eq!(small(&tiny, fit(1, 1)).unwrap(), original, "the smallest size is larger");
        assert_eq!(size(small(&tiny, crop(32, 32)).unwrap()), (10, 10), "the shape, as large as there is");
        let exact = png(halves(96, 96));
        assert_eq!(small(&exact, crop(96, 96)).unwrap(), original);
        let large = png(halves(1500, 1000));
        assert_eq!(small(&large, fit(5000, 5000)).unwrap(), original);
        assert_eq!(small(&large, crop(5000, 100)).unwrap(), original);
    }

    proptest! {
        #[test]
        fn pitfall_106_any_plan_keeps_its_promises(
            source in (1u32..20_000, 1u32..20_000),
            asked in (1u32..4_000, 1u32..4_000),
            cut in any::<bool>(),
        ) {
            let method = if cut { Method::Crop } else { Method::Scale };
            let ask = Ask::new(asked.0, asked.1, method, false);
            prop_assert!(ask.width >= asked.0 && ask.height >= asked.1);
            let Some(plan) = Plan::new(source, ask) else { return Ok(()) };
            let result = plan.cut;
            prop_assert!(result.0 >= 1 && result.1 >= 1);
            prop_assert!(result.0 <= plan.scaled.0 && result.1 <= plan.scaled.1);
            prop_assert!(plan.scaled.0 <= source.0 && plan.scaled.1 <= source.1, "nothing grows");
            // Too small on a side only where the picture is, or where its shape is cut to another one.
            let fits = source.0 >= ask.width && source.1 >= ask.height;
            if fits {
                prop_assert!(result.0 >= asked.0 && result.1 >= asked.1, "{:?} {:?}", ask, result);
            }
            prop_assume!(method == Method::Crop && fits);
            prop_assert_eq!(result, (ask.width, ask.height));
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_picture(start in 0usize..4, mut tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let heads: [&[u8]; 4] = [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\0\x01\0\0WEBPVP8L"];
            let mut bytes = heads[start].to_vec();
            bytes.append(&mut tail);
            let _ = small(&bytes, fit(32, 32));
        }

        #[test]
        fn broken_pictures_are_an_error_or_a_picture(format in 0usize..4, at in 0usize..2000, byte in any::<u8>(), end in 0usize..4000) {
            let formats = [ImageFormat::Png, ImageFormat::Gif, ImageFormat::Jpeg, ImageFormat::WebP];
            let mut bytes = encoded(halves(60, 40), formats[format]);
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
            bytes.truncate(end);
            let _ = small(&bytes, crop(32, 32));
        }
    }

    #[test]
    fn every_format_is_read_and_transparency_is_kept() {
        for format in [ImageFormat::Png, ImageFormat::Gif, ImageFormat::Jpeg, ImageFormat::WebP] {
            let (content_type, image) = picture(small(&encoded(halves(400, 200), format), crop(32, 32)).unwrap());
            assert_eq!((content_type, image.width()), ("image/jpeg", 32), "{format:?}");
        }
        let gray = picture(small(&png(GrayImage::new(200, 200)), crop(32, 32)).unwrap());
        assert_eq!((gray.0, gray.1.color()), ("image/jpeg", ColorType::L8));
        let glass = RgbaImage::from_pixel(200, 200, Rgba([0, 255, 0, 100]));
        let (content_type, image) = picture(small(&png(glass), crop(32, 32)).unwrap());
        assert_eq!((content_type, image.to_rgba8().get_pixel(3, 3).0), ("image/png", [0, 255, 0, 100]));
        let solid = RgbaImage::from_pixel(200, 200, Rgba([0, 255, 0, 255]));
        assert_eq!(picture(small(&png(solid), crop(32, 32)).unwrap()).0, "image/jpeg");
        let deep: ImageBuffer<Rgb<u16>, Vec<u16>> = ImageBuffer::from_pixel(200, 100, Rgb([u16::MAX, 0, 0]));
        assert!(picture(small(&png(deep), crop(32, 32)).unwrap()).1.to_rgb8().get_pixel(1, 1).0[0] > 250);
    }

    #[test]
    fn pitfall_106_pictures_are_turned_upright() {
        // A minimal Exif block: one entry, the orientation.
        let exif = |turn: u8| {
            [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[turn, 0, 0, 0, 0, 0, 0, 0]].concat()
        };
        let turned = |turn: u8| {
            let mut bytes = Vec::new();
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
            encoder.set_exif_metadata(exif(turn)).unwrap();
            halves(1200, 600).write_with_encoder(encoder).unwrap();
            bytes
        };
        let (_, straight) = picture(small(&turned(1), fit(100, 50)).unwrap());
        assert_eq!((straight.width(), straight.height()), (480, 240));
        // Turned clockwise, the left side is up.
        let (_, upright) = picture(small(&turned(6), fit(100, 50)).unwrap());
        assert_eq!((upright.width(), upright.height()), (320, 640));
        let (top, bottom) = (upright.to_rgb8().get_pixel(20, 10).0, upright.to_rgb8().get_pixel(20, 630).0);
        assert!(top[0] > 200 && bottom[2] > 200, "{top:?} {bottom:?}");
        let (_, cropped) = picture(small(&turned(6), crop(50, 200)).unwrap());
        assert_eq!((cropped.width(), cropped.height()), (50, 200));
    }

    #[test]
    fn pitfall_106_a_huge_picture_is_refused_by_its_header() {
        let refused = |name: &str, bytes: &[u8]| {
            let outcome = small(bytes, fit(320, 240));
            assert!(matches!(outcome, Err(Failure::TooLarge)), "{name}: {outcome:?}");
        };
        refused("png", &png_header(60_000, 60_000));
        refused("gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;");
        let mut jpeg = encoded(halves(16, 16), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xf0, 0, 0xf0, 0]);
        refused("jpeg", &jpeg);
        // The extended header of WebP: flags, then width - 1 and height - 1 in three bytes each.
        let webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0VP8L\0\0\0\0";
        let outcome = small(webp, fit(320, 240));
        assert!(outcome.is_err(), "webp: {outcome:?}");
        let at_the_limit = png(GrayImage::new(2000, 2000));
        assert!(small(&at_the_limit, crop(32, 32)).is_ok());
        refused("one more", &png(GrayImage::new(2000, 2001)));
    }

    #[test]
    fn pitfall_106_a_frame_larger_than_its_picture_is_refused() {
        // A canvas of 1 x 1, and a frame of 65535 x 65535 on it.
        let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff".to_vec();
        gif.extend_from_slice(b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;");
        for animated in [false, true] {
            let outcome = small(&gif, Ask::new(1, 1, Method::Scale, animated));
            assert!(matches!(outcome, Err(Failure::TooLarge | Failure::NotAPicture(_))), "{outcome:?}");
        }
    }

    #[test]
    fn pitfall_106_a_picture_without_pixels_is_none() {
        // A canvas of 0 x 0, and a frame on it.
        let gif = b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;";
        for animated in [false, true] {
            for method in [Method::Crop, Method::Scale] {
                let outcome = small(gif, Ask::new(50, 17, method, animated));
                assert!(matches!(outcome, Err(Failure::NotAPicture(_))), "{outcome:?}");
            }
        }
    }

    #[test]
    fn what_is_no_picture_is_said_to_be_none() {
        for bytes in [b"".as_slice(), b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM\0\0", b"%PDF-1.4"] {
            assert!(matches!(small(bytes, fit(1, 1)), Err(Failure::NotAPicture(_))));
        }
        let mut cut_off = png(halves(400, 400));
        cut_off.truncate(60);
        assert!(matches!(small(&cut_off, crop(32, 32)), Err(Failure::NotAPicture(_) | Failure::Io(_))));
    }

    #[test]
    fn pitfall_106_it_moves_only_when_asked() {
        let gif = moving_gif(200, 100, 5);
        let ask = |animated| Ask::new(32, 32, Method::Crop, animated);
        let Made::Smaller { bytes, content_type } = small(&gif, ask(true)).unwrap() else { panic!() };
        assert_eq!((content_type, frames(&bytes)), ("image/gif", 5));
        assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 32);
        assert_eq!(picture(small(&gif, ask(false)).unwrap()).0, "image/jpeg");
        // Also when it is small enough already.
        let tiny = moving_gif(20, 20, 3);
        assert_eq!(small(&tiny, ask(true)).unwrap(), Made::Original { content_type: "image/gif" });
        assert_eq!(size(small(&tiny, ask(false)).unwrap()), (20, 20));
        // One frame is no film.
        assert_eq!(picture(small(&moving_gif(200, 200, 1), ask(true)).unwrap()).0, "image/jpeg");
        // Too much work: it stands still.
        let tight = Bounds { max_pixels: 60_000 };
        assert_eq!(picture(make(Cursor::new(&gif), ask(true), tight).unwrap()).0, "image/jpeg");
    }

    /// A PNG of any size that ends after its header.
    fn png_header(width: u32, height: u32) -> Vec<u8> {
        let mut header = b"IHDR".to_vec();
        header.extend_from_slice(&width.to_be_bytes());
        header.extend_from_slice(&height.to_be_bytes());
        header.extend_from_slice(&[8, 2, 0, 0, 0]);
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&crc32(&header).to_be_bytes());
        bytes.extend_from_slice(b"\0\0\0\x05IDAT");
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }
}

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
    let reader = limited(source, bounds)?;
    let format = format_of(&reader)?;
    let (width, height) = reader.into_dimensions().map_err(Failure::from)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > bounds.max_pixels { Err(Failure::TooLarge) } else { Ok((format, pixels)) }
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

//! The bytes of a simulated file: pages shared between what readers see and what is durable.

use std::rc::Rc;

pub(super) const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Pages; an absent one reads as zeros. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    pages: Vec<Option<Rc<[u8; PAGE_BYTES]>>>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Up to `len` bytes at `offset`; fewer at the end.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.len);
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let (page, within) = place(at);
            let take = (PAGE_BYTES - within).min((end - at) as usize);
            let held = self.pages.get(page).and_then(Option::as_ref).map_or(&ZEROS, |page| page);
            bytes.extend_from_slice(&held[within..within + take]);
            at += take as u64;
        }
        bytes
    }

    /// Writes `bytes` at `offset`; the file grows when they reach behind its end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.set_len(self.len.max(offset + bytes.len() as u64));
        let mut done = 0;
        while done < bytes.len() {
            let (page, within) = place(offset + done as u64);
            let take = (PAGE_BYTES - within).min(bytes.len() - done);
            let piece = &bytes[done..done + take];
            if take == PAGE_BYTES && piece == ZEROS {
                self.pages[page] = None;
            } else {
                let held = self.pages[page].get_or_insert_with(|| Rc::new(ZEROS));
                Rc::make_mut(held)[within..within + take].copy_from_slice(piece);
            }
            done += take;
        }
    }

    /// Cuts, or grows by zeros.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (page, within) = place(len);
            self.pages.truncate((len as usize).div_ceil(PAGE_BYTES));
            if within > 0
                && let Some(Some(last)) = self.pages.get_mut(page)
            {
                Rc::make_mut(last)[within..].fill(0);
            }
        }
        self.pages.resize((len as usize).div_ceil(PAGE_BYTES), None);
        self.len = len;
    }
}

fn place(offset: u64) -> (usize, usize) {
    (offset as usize / PAGE_BYTES, offset as usize % PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_random_writes_and_cuts_equal_a_vector() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut content, mut plain) = (Content::default(), Vec::new());
        for _ in 0..2_000 {
            let offset = random.usize(0..20_000);
            if random.u8(..) < 30 {
                plain.resize(offset, 0);
                content.set_len(offset as u64);
                continue;
            }
            let bytes = vec![random.u8(0..3); random.usize(0..9_000)];
            if !bytes.is_empty() && plain.len() < offset + bytes.len() {
                plain.resize(offset + bytes.len(), 0);
            }
            if let Some(place) = plain.get_mut(offset..offset + bytes.len()).filter(|place| !place.is_empty()) {
                place.copy_from_slice(&bytes);
                content.write(offset as u64, &bytes);
            }
            let (from, len) = (random.usize(0..20_000), random.usize(0..9_000));
            let expected = plain.get(from..(from + len).min(plain.len())).unwrap_or_default();
            assert_eq!(content.read(from as u64, len), expected);
            assert_eq!(content.len(), plain.len() as u64);
        }
    }
}

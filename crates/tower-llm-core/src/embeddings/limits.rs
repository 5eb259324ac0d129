use std::ops::Range;

use crate::Provider;

/// What a provider takes in one embeddings call.
///
/// Both limits hold at once: a call within the number of items may still have too many tokens. Tokens are compared as they are
/// [estimated](crate::Call::input_tokens).
///
/// | provider | items | tokens | tokens per item |
/// |---|---|---|---|
/// | [`OPENAI`](Self::OPENAI), Azure | 2,048 | 300,000 | 8,192 |
/// | [`COHERE`](Self::COHERE) | 96 | | |
/// | [`VOYAGE`](Self::VOYAGE) | 1,000 | 120,000: that of its largest models | |
/// | [`GEMINI`](Self::GEMINI) | 100 | | 2,048 |
/// | [`VERTEX`](Self::VERTEX) | 250 | 20,000 | 2,048 |
/// | [`MISTRAL`](Self::MISTRAL) | 64 | | |
/// | [`TEI`](Self::TEI), llama.cpp | 32 | | |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct EmbeddingLimits {
    /// Maximum number of items.
    pub items: u64,
    /// Maximum number of tokens of all items together; `None` if there is no known limit.
    pub tokens: Option<u64>,
    /// Maximum number of tokens of one item; `None` if there is no known limit.
    pub tokens_per_item: Option<u64>,
}

impl EmbeddingLimits {
    /// `OpenAI`, also at Azure.
    pub const OPENAI: Self = Self::new(2_048).tokens(300_000).tokens_per_item(8_192);
    /// Cohere.
    pub const COHERE: Self = Self::new(96);
    /// Voyage. Its smaller models take more tokens.
    pub const VOYAGE: Self = Self::new(1_000).tokens(120_000);
    /// The Gemini API.
    pub const GEMINI: Self = Self::new(100).tokens_per_item(2_048);
    /// Vertex AI.
    pub const VERTEX: Self = Self::new(250).tokens(20_000).tokens_per_item(2_048);
    /// Mistral. It documents no number; 64 is safe, and 220 is reported to fail.
    pub const MISTRAL: Self = Self::new(64);
    /// Text Embeddings Inference and llama.cpp, unless their servers are configured otherwise.
    pub const TEI: Self = Self::new(32);

    /// Creates limits of `items` per call, and none of tokens.
    #[must_use]
    pub const fn new(items: u64) -> Self {
        Self {
            items,
            tokens: None,
            tokens_per_item: None,
        }
    }

    /// Sets the limit of tokens per call.
    #[must_use]
    pub const fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Sets the limit of tokens per item.
    #[must_use]
    pub const fn tokens_per_item(mut self, tokens: u64) -> Self {
        self.tokens_per_item = Some(tokens);
        self
    }

    /// Divides items, by the tokens of each, into as few calls as these limits allow: as many as fit, in order.
    ///
    /// ```
    /// use tower_llm_core::EmbeddingLimits;
    ///
    /// let limits = EmbeddingLimits::new(3).tokens(10).tokens_per_item(8);
    /// assert_eq!(limits.divide([4, 4, 4, 1, 1, 1]), Ok(vec![0..2, 2..5, 5..6]));
    /// assert_eq!(limits.divide([4, 9]), Err(1));
    /// ```
    ///
    /// # Errors
    ///
    /// The position of the first item that no call can take: it exceeds the limit of one item, or of a call.
    pub fn divide(
        &self,
        tokens: impl IntoIterator<Item = u64>,
    ) -> Result<Vec<Range<usize>>, usize> {
        let most = self.tokens.unwrap_or(u64::MAX);
        let most_of_one = self.tokens_per_item.unwrap_or(u64::MAX).min(most);
        let mut calls: Vec<Range<usize>> = Vec::new();
        let mut used = 0;
        for (item, tokens) in tokens.into_iter().enumerate() {
            if tokens > most_of_one {
                return Err(item);
            }
            match calls.last_mut() {
                // What is left is compared: a sum could overflow.
                Some(call) if (call.len() as u64) < self.items && tokens <= most - used => {
                    call.end += 1;
                    used += tokens;
                }
                _ => {
                    calls.push(item..item + 1);
                    used = tokens;
                }
            }
        }
        Ok(calls)
    }

    /// Returns the limits of a provider; of one that is not known, the least of all: those of [`TEI`](Self::TEI).
    #[must_use]
    pub fn of(provider: &Provider) -> Self {
        match provider.as_str() {
            "openai" | "azure" | "azure.ai.openai" => Self::OPENAI,
            "cohere" => Self::COHERE,
            "voyage" | "voyageai" => Self::VOYAGE,
            "gemini" | "gcp.gemini" => Self::GEMINI,
            "vertex" | "vertex_ai" | "gcp.vertex_ai" => Self::VERTEX,
            "mistral" | "mistral_ai" => Self::MISTRAL,
            _ => Self::TEI,
        }
    }
}

/// Whether a member of an embeddings request leaves each vector to its own input. Others may not: with `late_chunking`, a vector
/// depends on all inputs.
///
/// A request with any other member must be neither divided nor merged with another one.
#[must_use]
pub fn is_of_each_input(name: &str) -> bool {
    matches!(
        name,
        "model"
            | "input"
            | "user"
            | "encoding_format"
            | "dimensions"
            // Voyage, Jina, Cohere and NVIDIA.
            | "input_type"
            | "output_dimension"
            | "output_dtype"
            | "embedding_type"
            | "embedding_types"
            | "normalized"
            | "task"
            | "truncate"
            | "truncation"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_providers_go_by_have_their_limits() {
        let of = |name: &'static str| EmbeddingLimits::of(&Provider::new(name));
        assert_eq!(of("openai").tokens, Some(300_000));
        assert_eq!(
            EmbeddingLimits::of(&Provider::AZURE_OPENAI),
            EmbeddingLimits::OPENAI
        );
        assert_eq!(EmbeddingLimits::of(&Provider::GEMINI).items, 100);
        assert_eq!(of("gcp.vertex_ai").tokens, Some(20_000));
        assert_eq!((of("cohere").items, of("mistral_ai").items), (96, 64));
        assert_eq!(of("a server of our own"), EmbeddingLimits::TEI);
    }
}

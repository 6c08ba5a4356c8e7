"""The journal: generations, and what people, programs and models think of them. No torch."""

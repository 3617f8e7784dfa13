"""The durable record: who asked, what was answered, how people voted. Loads neither torch nor gradio."""

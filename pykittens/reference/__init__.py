"""What documentation is made from: the words and what stands behind them, pictures of layouts, the site's pages."""
